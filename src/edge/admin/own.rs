//! What the kernel says of this process: memory, CPU time, start (proc_pid_stat(5), proc_pid_statm(5)). What cannot be
//! read is 0.

use std::fs;

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Own {
    pub resident_bytes: u64,
    pub cpu_s: f64,
    /// Since 1970.
    pub started_s: f64,
}

/// Linux shows times to user space in hundredths of a second, whatever it counts in.
const TICKS_PER_SECOND: f64 = 100.0;

impl Own {
    pub fn read() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let stat = text("/proc/self/stat");
        let boot = text("/proc/stat");
        let boot_s = boot
            .lines()
            .find_map(|line| line.strip_prefix("btime "))
            .and_then(|text| text.trim().parse().ok());
        Self {
            resident_bytes: resident_bytes(&text("/proc/self/status")),
            ..Self::of_stat(&stat, boot_s.unwrap_or_default())
        }
    }

    /// Fields count from the state, the third, which follows the name in its parentheses.
    fn of_stat(stat: &str, boot_s: f64) -> Self {
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let seconds = |field: usize| {
            fields.get(field - 3).and_then(|text| text.parse::<f64>().ok()).unwrap_or_default()
                / TICKS_PER_SECOND
        };
        Self { resident_bytes: 0, cpu_s: seconds(14) + seconds(15), started_s: boot_s + seconds(22) }
    }
}

fn resident_bytes(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .map_or(0, |kib| kib * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_itself() {
        let own = Own::read();
        assert!(own.resident_bytes > 100_000 && own.started_s > 1e9, "{own:?}");
        let stat = "12 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 8 0 1000 5 6";
        let want = Own { resident_bytes: 0, cpu_s: 2.0, started_s: 110.0 };
        assert_eq!(Own::of_stat(stat, 100.0), want);
        assert_eq!(Own::of_stat("", 0.0), Own::default());
        assert_eq!(resident_bytes("VmRSS:\t    12 kB\n"), 12_288);
    }
}
