//! tuning/network.sh: advice for cards of several kinds.

use std::fs;
use std::os::unix::fs::symlink;

use super::{Machine, run};

#[test]
fn network_advice_is_printed_and_nothing_else() {
    let machine = Machine::new("network");
    machine.write("sys/devices/system/cpu/online", "0-3,40\n");
    for queue in ["rx-0", "rx-1", "tx-0", "tx-1"] {
        machine.write(&format!("sys/class/net/eth7/queues/{queue}/placeholder"), "");
    }
    machine.write("sys/class/net/lo/queues/rx-0/placeholder", "");
    fs::create_dir_all(machine.0.join("sys/devices/virtio2")).expect("a folder");
    symlink("../../../devices/virtio2", machine.0.join("sys/class/net/eth7/device")).expect("a link");
    machine.write(
        "proc/interrupts",
        "           CPU0       CPU1\n 37:  0  0 PCI-MSIX 0-edge  virtio2-config\n 38:  1  2 PCI-MSIX 1-edge  \
         virtio2-input.0\n 39:  1  2 PCI-MSIX 2-edge  virtio2-output.0\n 40:  1  2 PCI-MSIX 2-edge  virtio3-input.0\n \
         41:  1  2 PCI-MSIX 3-edge  virtio2-input.1\n 42:  1  2 PCI-MSIX 4-edge  virtio2-output.1\n",
    );
    let before = machine.everything();
    let advice = machine.run("network.sh", &[]).expect(0);
    assert_eq!(machine.everything(), before);
    let lines: Vec<&str> = advice.out.lines().filter(|line| !line.starts_with('#')).collect();
    let want = [
        "== eth7: 2 receive and 2 send queues, 5 cores",
        "ethtool -L eth7 combined 5",
        "ethtool -G eth7 rx 4096 tx 4096",
        "ethtool -C eth7 adaptive-rx on adaptive-tx on",
        "systemctl disable --now irqbalance",
        "echo 0 >/proc/irq/38/smp_affinity_list",
        "echo 0 >/proc/irq/39/smp_affinity_list",
        "echo 1 >/proc/irq/41/smp_affinity_list",
        "echo 1 >/proc/irq/42/smp_affinity_list",
        "sysctl -w net.core.rps_sock_flow_entries=65536",
        "echo 100,0000000f >/sys/class/net/eth7/queues/rx-0/rps_cpus",
        "echo 32768 >/sys/class/net/eth7/queues/rx-0/rps_flow_cnt",
        "echo 100,0000000f >/sys/class/net/eth7/queues/rx-1/rps_cpus",
        "echo 32768 >/sys/class/net/eth7/queues/rx-1/rps_flow_cnt",
        "echo 1 >/sys/class/net/eth7/queues/tx-0/xps_cpus",
        "echo 2 >/sys/class/net/eth7/queues/tx-1/xps_cpus",
    ];
    assert_eq!(lines, want);
    machine.run("network.sh", &["--interface", "eth9"]).expect(2);
    // This machine's own, whatever it has.
    run("network.sh", &[]).expect(0);
}

/// A name, interrupts from 30 on, those that the device says, "CORE INTERRUPT" of the advice, and a part of it.
type Case<'a> = (&'a str, &'a [&'a str], &'a [u32], &'a [&'a str], &'a str);

/// Queue n's interrupts on core n, however the driver names them; and a word where none is found.
#[test]
fn interrupts_of_a_queue_go_to_its_core() {
    let by_device = "says (msi_irqs)";
    let cases: &[Case] = &[
        (
            "receive and send in one",
            &["eth7-TxRx-0", "eth7-TxRx-1", "eth7-TxRx-2", "eth7"],
            &[],
            &["0 30", "1 31", "0 32"],
            "to core n",
        ),
        (
            "receive first",
            &["eth7-rx-0", "eth7-rx-1", "eth7-tx-0", "eth7-tx-1"],
            &[],
            &["0 30", "0 32", "1 31", "1 33"],
            "to core n",
        ),
        (
            "another driver's prefix, another card",
            &["i40e-eth7-TxRx-1", "eth70-TxRx-0"],
            &[],
            &["1 30"],
            "to core n",
        ),
        ("a card with one interrupt", &["eth7"], &[], &["0 30"], "to core n"),
        (
            "mlx5",
            &[
                "mlx5_async0@pci:0000:00:05.0",
                "mlx5_comp0@pci:0000:00:05.0",
                "mlx5_comp1@pci:0000:00:05.0",
                "mlx5_comp0@pci:0000:00:06.0",
            ],
            &[30, 31, 32, 60],
            &["0 31", "1 32"],
            by_device,
        ),
        (
            "names without numbers",
            &["card:a", "card:b", "card:c"],
            &[30, 31, 32],
            &["0 30", "1 31", "0 32"],
            by_device,
        ),
        (
            "none",
            &["mlx5_comp0@pci:0000:00:06.0"],
            &[],
            &[],
            "# no interrupts of eth7 were found. Look for its driver",
        ),
    ];
    for (name, interrupts, numbers, want, words) in cases {
        let machine = Machine::new("interrupts");
        machine.write("sys/devices/system/cpu/online", "0-1\n");
        for queue in ["rx-0", "rx-1", "tx-0", "tx-1"] {
            machine.write(&format!("sys/class/net/eth7/queues/{queue}/placeholder"), "");
        }
        machine.write("sys/devices/0000:00:05.0/vendor", "");
        symlink("../../../devices/0000:00:05.0", machine.0.join("sys/class/net/eth7/device"))
            .expect("a link");
        for number in *numbers {
            machine.write(&format!("sys/devices/0000:00:05.0/msi_irqs/{number}"), "msix\n");
        }
        let mut table = "           CPU0       CPU1\n".to_owned();
        for (n, interrupt) in interrupts.iter().enumerate() {
            table += &format!(" {}:  1  2 PCI-MSIX {n}-edge  {interrupt}\n", 30 + n);
        }
        machine.write("proc/interrupts", &table);
        let advice = machine.run("network.sh", &[]).expect(0);
        let lines = advice.out.lines().filter_map(|line| {
            let (core, irq) = line.strip_prefix("echo ")?.split_once(" >/proc/irq/")?;
            Some(format!("{core} {}", irq.strip_suffix("/smp_affinity_list")?))
        });
        assert_eq!(lines.collect::<Vec<_>>(), *want, "{name}: {}", advice.out);
        assert!(advice.out.contains(words), "{name}: {}", advice.out);
        assert_eq!(advice.out.contains(by_device), *words == by_device, "{name}: {}", advice.out);
        for queue in ["echo 1 >/sys/class/net/eth7/queues/tx-0/", "echo 2 >/sys/class/net/eth7/queues/tx-1/"]
        {
            assert!(advice.out.contains(queue), "{name}: {}", advice.out);
        }
    }
}
