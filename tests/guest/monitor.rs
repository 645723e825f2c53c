//! QEMU's monitor (QMP), as far as the tests use it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub struct Monitor {
    stream: BufReader<UnixStream>,
    /// Events that came before an answer.
    events: Vec<String>,
}

impl Monitor {
    pub fn connect(path: &Path) -> Monitor {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        let mut monitor = Monitor {
            stream: BufReader::new(stream),
            events: Vec::new(),
        };
        monitor.execute("qmp_capabilities");
        monitor
    }

    fn line(&mut self, waiting_for: &str) -> String {
        let mut line = String::new();
        let len = self.stream.read_line(&mut line).unwrap();
        assert!(len > 0, "{waiting_for}: QEMU has gone");
        line
    }

    /// Runs a command without arguments, and waits for its answer.
    pub fn execute(&mut self, command: &str) {
        self.execute_with(command, "");
    }

    /// Runs a command with arguments (JSON, without the outer braces), and waits for its answer.
    pub fn execute_with(&mut self, command: &str, arguments: &str) {
        let message = format!("{{\"execute\": \"{command}\", \"arguments\": {{{arguments}}}}}\n");
        self.stream.get_mut().write_all(message.as_bytes()).unwrap();
        loop {
            let line = self.line(command);
            assert!(!line.contains("\"error\""), "{command}: {line}");
            if line.contains("\"return\"") {
                return;
            }
            self.events.push(line);
        }
    }

    /// Waits for an event of which this is a part, and takes it and all before it.
    pub fn wait_for(&mut self, event: &str) {
        let before = std::mem::take(&mut self.events);
        if before.iter().any(|line| line.contains(event)) {
            return;
        }
        while !self.line(event).contains(event) {}
    }

    /// Whether such an event has come with an answer to a command.
    pub fn has_seen(&self, event: &str) -> bool {
        self.events.iter().any(|line| line.contains(event))
    }
}
