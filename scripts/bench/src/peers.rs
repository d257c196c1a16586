//! Other agents, if they are installed, as their manuals set them up for the same work: one file to one receiver.

use std::fs;
use std::io::Result;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

pub struct Peer {
    pub name: &'static str,
    /// Where it was found.
    program: PathBuf,
    setup: Setup,
}

type Setup = fn(program: &Path, place: &Place) -> Result<Command>;

/// What it is set up for.
pub struct Place<'a> {
    /// Empty, for the configuration and the state.
    pub folder: &'a Path,
    pub logs: &'a Path,
    pub receiver: SocketAddr,
}

impl Peer {
    pub fn command(&self, place: &Place) -> Result<Command> {
        (self.setup)(&self.program, place)
    }

    /// The first line that it says about itself.
    pub fn version(&self) -> String {
        let flag = if self.program.ends_with("rsyslogd") { "-v" } else { "--version" };
        let output = Command::new(&self.program).arg(flag).output();
        let text =
            output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        let first = text.lines().next().unwrap_or_default();
        first.split(" (").next().unwrap_or(first).split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// Those that stand in `PATH`.
pub fn installed() -> Vec<Peer> {
    let known: [(&str, &str, Setup); 4] = [
        ("Fluent Bit to Loki, uncompressed", "fluent-bit", fluent_bit),
        ("Fluent Bit to Loki, gzip", "fluent-bit", fluent_bit_gzip),
        ("Vector to Loki, snappy", "vector", vector),
        ("rsyslog to Elasticsearch", "rsyslogd", rsyslog),
    ];
    let found = |(name, program, setup)| find(program).map(|program| Peer { name, program, setup });
    known.into_iter().filter_map(found).collect()
}

pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file())
}

fn fluent_bit(program: &Path, place: &Place) -> Result<Command> {
    fluent_bit_with(program, place, "")
}

fn fluent_bit_gzip(program: &Path, place: &Place) -> Result<Command> {
    fluent_bit_with(program, place, "    compress gzip\n")
}

fn fluent_bit_with(program: &Path, place: &Place, more: &str) -> Result<Command> {
    let config = place.folder.join("fluent-bit.conf");
    let (logs, folder) = (place.logs.display(), place.folder.display());
    let (host, port) = (place.receiver.ip(), place.receiver.port());
    fs::write(
        &config,
        format!(
            "[SERVICE]\n    flush 1\n    log_level warn\n\
             [INPUT]\n    name tail\n    path {logs}\n    db {folder}/tail.db\n    read_from_head true\n\
             [OUTPUT]\n    name loki\n    match *\n    host {host}\n    port {port}\n    labels job=bench\n{more}"
        ),
    )?;
    let mut command = Command::new(program);
    command.arg("-c").arg(config);
    Ok(command)
}

fn vector(program: &Path, place: &Place) -> Result<Command> {
    let config = place.folder.join("vector.toml");
    let (logs, folder, receiver) = (place.logs.display(), place.folder.display(), place.receiver);
    fs::write(
        &config,
        format!(
            "data_dir = \"{folder}\"\n\
             [sources.in]\ntype = \"file\"\ninclude = [\"{logs}\"]\nread_from = \"beginning\"\n\
             [sinks.out]\ntype = \"loki\"\ninputs = [\"in\"]\nendpoint = \"http://{receiver}\"\n\
             encoding.codec = \"text\"\nlabels.job = \"bench\"\nhealthcheck.enabled = false\n"
        ),
    )?;
    let mut command = Command::new(program);
    command.arg("--quiet").arg("--config").arg(config);
    Ok(command)
}

fn rsyslog(program: &Path, place: &Place) -> Result<Command> {
    let config = place.folder.join("rsyslog.conf");
    let (logs, folder) = (place.logs.display(), place.folder.display());
    let (host, port) = (place.receiver.ip(), place.receiver.port());
    fs::write(
        &config,
        format!(
            "global(workDirectory=\"{folder}\")\nmodule(load=\"imfile\")\nmodule(load=\"omelasticsearch\")\n\
             input(type=\"imfile\" File=\"{logs}\" Tag=\"bench\" ruleset=\"out\")\n\
             ruleset(name=\"out\") {{ action(type=\"omelasticsearch\" server=\"{host}\" serverport=\"{port}\" \
             searchIndex=\"bench\" bulkmode=\"on\") }}\n"
        ),
    )?;
    let mut command = Command::new(program);
    command.arg("-n").arg("-f").arg(config).arg("-i").arg(place.folder.join("pid"));
    Ok(command)
}
