//! The agent as it is set up for each measurement: defaults, but for what is said here.

use std::fs;
use std::io::Result;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process::Process;

pub enum Sink {
    Loki(SocketAddr),
    /// With a `max_wait` of 10 ms: what is measured is not how long a batch waits for company.
    SwiftLoki(SocketAddr),
    /// So many of the first kind.
    Lokis(SocketAddr, usize),
    /// One file, `out.log` in the folder of the configuration.
    File,
}

pub struct Setup<'a> {
    pub logs: &'a str,
    pub sink: Sink,
    pub memory_budget: &'a str,
    pub status: Option<SocketAddr>,
}

impl Setup<'_> {
    /// Writes the configuration into `folder`, where its state will be too.
    pub fn write(&self, folder: &Path) -> Result<PathBuf> {
        let sink = match self.sink {
            Sink::Loki(address) => format!(r#"{{ "type": "loki", "url": "http://{address}" }}"#),
            Sink::SwiftLoki(address) => {
                format!(
                    r#"{{ "type": "loki", "url": "http://{address}", "batch": {{ "max_wait": "10ms" }} }}"#
                )
            }
            Sink::Lokis(address, count) => {
                let one = |number| {
                    format!(r#"{{ "type": "loki", "name": "loki{number}", "url": "http://{address}" }}"#)
                };
                (0..count).map(one).collect::<Vec<_>>().join(", ")
            }
            Sink::File => r#"{ "type": "file", "path": "out.log" }"#.to_owned(),
        };
        let status = self.status.map_or("127.0.0.1:0".to_owned(), |address| address.to_string());
        let (logs, memory_budget) = (self.logs, self.memory_budget);
        let config = format!(
            r#"{{ "agent": {{ "memory_budget": "{memory_budget}" }}, "status": {{ "listen": "{status}" }},
  "sources": [ {{ "type": "file", "include": ["{logs}"] }} ], "sinks": [ {sink} ] }}"#
        );
        let path = folder.join("config.json");
        fs::write(&path, config)?;
        Ok(path)
    }
}

/// It follows until it is told to stop; with `once` it ends when everything is delivered.
pub fn command(agent: &Path, config: &Path, once: bool) -> Command {
    let mut command = Command::new(agent);
    command.arg("run").args(once.then_some("--once")).arg("--config").arg(config);
    command.env_remove("RUST_LOG");
    command
}

/// A port that was free a moment ago.
pub fn free_address() -> Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

/// Waits until it says that it is ready. How long that took since its start.
pub fn until_ready(process: &mut Process, status: SocketAddr) -> Result<Duration> {
    process.until(Duration::from_secs(60), || is_ready(status).unwrap_or(false))?;
    Ok(process.began.elapsed())
}

fn is_ready(status: SocketAddr) -> Result<bool> {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect(status)?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.starts_with("HTTP/1.1 200"))
}
