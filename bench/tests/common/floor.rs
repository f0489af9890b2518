//! A floor that serves, ended with the value that owns it.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

pub struct Floor {
    child: Child,
    pub address: String,
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn floor(args: &[&str]) -> Floor {
    let mut command = Command::new(env!("CARGO_BIN_EXE_floor"));
    let mut child = command.args(args).stderr(Stdio::piped()).spawn().expect("the floor starts");
    let mut line = String::new();
    let log = child.stderr.take().expect("piped");
    BufReader::new(log).read_line(&mut line).expect("it says that it serves");
    let said: serde_json::Value = serde_json::from_str(&line).expect("a JSON line");
    let address = said["listen"].as_str().expect("an address").to_owned();
    Floor { child, address }
}
