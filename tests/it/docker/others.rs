//! Engines of another kind, or at another place: Podman, and a Docker that is reached over TCP with TLS.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::engine::{Engine, PATIENCE, times};
use super::real::{arrived, until_count};
use super::{are_said_to_be_lost, readers};
use crate::agent::{Room, until};

/// Podman's compatible API: whole seconds for times, parts of a line that have times of their own, no daemon that
/// containers depend on.
#[test]
fn podman_is_read_like_docker() {
    let Some(mut engine) = Engine::start_podman("others::podman_is_read_like_docker") else { return };
    let room = engine.room();
    let long = 100_000;
    let script = format!("seq 1000; echo to stderr >&2; head -c {long} /dev/zero | tr '\\0' a; echo");
    let each = 1002;
    engine.create("lives", &script, false, false);
    let mut lives = 0;
    let mut live = |engine: &Engine| {
        engine.start_container("lives");
        engine.wait("lives");
        lives += 1;
        lives
    };
    live(&engine); // nobody is there
    let mut agent = room.run();
    agent.until("the engine was met", || agent.stderr().contains("Podman, API"));
    until_count(&agent, &room, each);
    for dies in [false, true] {
        let lines = live(&engine) * each;
        until_count(&agent, &room, lines);
        agent.until("it is read to its end", || readers(&agent) == 0);
        if dies {
            agent.kill9();
        } else {
            assert_eq!(agent.stop(), 0, "{}", agent.stderr());
        }
        live(&engine);
        agent = room.run();
        until_count(&agent, &room, lines + each);
    }
    // Its service goes and comes back; containers live on.
    engine.run("goes-on", "n=0; while true; do echo $n; n=$((n + 1)); usleep 100000; done");
    let of = |name: &str| -> Vec<[String; 4]> {
        arrived(&room).into_iter().filter(|line| line[0] == name).collect()
    };
    until_count(&agent, &room, 5 * each + 10);
    engine.end();
    agent.until("it is noticed", || agent.get("/readyz").0 == 503);
    assert!(engine.launch(), "{}", engine.log());
    agent.until("it is well again", || agent.get("/readyz").0 == 200 && readers(&agent) == 1);
    let so_far = of("goes-on").len();
    agent.until("it is read on", || of("goes-on").len() >= so_far + 10);
    let short = times(50, 5);
    for number in 0..short {
        engine.create(&format!("rm-{number}"), &format!("echo only {number}"), false, true);
        engine.start_container(&format!("rm-{number}"));
        engine.wait(&format!("rm-{number}"));
    }
    let missing = || -> Vec<String> {
        let names = (0..short).map(|number| format!("rm-{number}"));
        names.filter(|name| of(name).is_empty()).collect()
    };
    let details = || format!("missing: {:?}\n{}", missing(), agent.stderr());
    until("all have arrived, or are said to be lost", PATIENCE, details, || {
        are_said_to_be_lost(&agent, &missing())
    });
    println!("podman: {} of {short} with --rm were removed before they could be read", missing().len());
    engine.remove_all();
    let details = || {
        let list = engine.well("GET", "/containers/json?all=1", &Value::Null);
        format!("the engine has {list}\nthe agent has {}", agent.get("/api/v1/sources").1)
    };
    until("all are forgotten", PATIENCE, details, || agent.get("/metrics").1.contains("containers_known 0"));
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());

    let numbers = (1..=1000).map(|number: usize| number.to_string());
    let life: Vec<String> = numbers.chain(["a".repeat(long)]).collect();
    let found: Vec<String> =
        of("lives").into_iter().filter(|line| line[1] == "stdout").map(|line| line[3].clone()).collect();
    let expected = vec![life; 5].concat();
    let differs = expected.iter().zip(&found).position(|(line, found)| line != found);
    let shown = differs.map(|at| &found[at][..found[at].len().min(100)]);
    assert!(
        expected.len() == found.len() && differs.is_none(),
        "{} lines of {}; {differs:?} is another: {shown:?}",
        found.len(),
        expected.len()
    );
    let goes_on: Vec<String> = of("goes-on").into_iter().map(|line| line[3].clone()).collect();
    assert_eq!(goes_on, (0..goes_on.len()).map(|number| number.to_string()).collect::<Vec<_>>());
    assert_eq!(of("lives").len() - found.len(), 5, "what was written to stderr");
}

fn openssl(folder: &Path, arguments: &str) {
    let made = Command::new("openssl").current_dir(folder).args(arguments.split(' ')).output().unwrap();
    assert!(made.status.success(), "{arguments}: {}", String::from_utf8_lossy(&made.stderr));
}

/// An authority `ca`, and what it has signed: `server` and `client`. Another authority, `other`.
fn certificates(folder: &Path) {
    for name in ["ca", "other"] {
        openssl(
            folder,
            &format!(
                "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name} -keyout {name}.key -out {name}.pem"
            ),
        );
    }
    for (name, extension) in [
        ("server", "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n"),
        ("client", "extendedKeyUsage=clientAuth\n"),
    ] {
        std::fs::write(folder.join("extension"), extension).unwrap();
        openssl(
            folder,
            &format!("req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"),
        );
        openssl(
            folder,
            &format!(
                "x509 -req -days 2 -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile extension -out {name}.pem"
            ),
        );
    }
}

/// Both sides show who they are; whoever does not is told so, and tries on.
#[test]
fn an_engine_over_tcp_with_tls() {
    let case = "others::an_engine_over_tcp_with_tls";
    if Command::new("openssl").arg("version").output().is_err() {
        println!("skipped: docker::{case}: there is no openssl to make certificates");
        return;
    }
    let keys = tempfile::tempdir().unwrap();
    certificates(keys.path());
    let pem = |name: &str| keys.path().join(name).display().to_string();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (ca, cert, key) = (pem("ca.pem"), pem("server.pem"), pem("server.key"));
    let listen = format!("tcp://127.0.0.1:{port}");
    let options = ["-H", &listen, "--tlsverify", "--tlscacert", &ca, "--tlscert", &cert, "--tlskey", &key];
    let Some(engine) = Engine::start_with(case, options.map(str::to_owned).into()) else { return };
    let room = |tls: Value| {
        Room::new(json!({
            "agent": { "sync_interval": "200ms" },
            "sources": [{ "type": "docker", "socket": format!("tcp://localhost:{port}"), "tls": tls }],
            "sinks": [{ "type": "file", "path": "out.json", "format": "json", "batch": { "max_wait": "50ms" } }],
        }))
    };
    engine.run("talks", "seq 1000; sleep 1; seq 1001 2000; sleep 1000");
    for (wrong, said) in [
        (
            json!({ "ca_file": pem("other.pem"), "cert_file": pem("client.pem"), "key_file": pem("client.key") }),
            "invalid peer certificate",
        ),
        (json!({ "ca_file": pem("ca.pem") }), "badcertificate"),
    ] {
        let room = room(wrong);
        let agent = room.run();
        agent.until("it is noticed", || agent.get("/readyz").0 == 503);
        agent.until("it is said", || agent.stderr().to_lowercase().contains(said));
        assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    }
    let room = room(
        json!({ "ca_file": pem("ca.pem"), "cert_file": pem("client.pem"), "key_file": pem("client.key") }),
    );
    let agent = room.run();
    until_count(&agent, &room, 2000);
    assert_eq!(readers(&agent), 1);
    engine.well("DELETE", "/containers/talks?force=1", &Value::Null);
    agent.until("it is not followed any more", || readers(&agent) == 0);
    assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    let lines: Vec<String> = arrived(&room).into_iter().map(|line| line[3].clone()).collect();
    assert!(lines == (1..=2000).map(|number: usize| number.to_string()).collect::<Vec<_>>());
}
