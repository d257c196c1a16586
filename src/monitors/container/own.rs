//! Which container we run in, so that we do not read what we wrote.

/// Its id or the beginning of it, if we are in one.
pub fn own_id() -> Option<String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default(); // not Linux as we know it: no container
    let found = of(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"));
    // Docker and Podman mark their containers; there the host name is the id, unless somebody has set one.
    let in_one = ["/.dockerenv", "/run/.containerenv"].iter().any(|mark| std::path::Path::new(mark).exists());
    let hostname = in_one.then(|| read("/proc/sys/kernel/hostname")).filter(|name| is_id(name.trim(), 12));
    found.or(hostname.map(|name| name.trim().to_owned()))
}

/// cgroup v1 has the id as the last part of a path; v2 shows nothing there, but what is mounted from the engine's
/// folder of the container (its `hostname`, `resolv.conf`) does.
fn of(cgroup: &str, mountinfo: &str) -> Option<String> {
    let id = |text: &str| is_id(text, 64).then(|| text.to_owned());
    let of_cgroup = cgroup.lines().find_map(|line| {
        let last = line.rsplit('/').next()?;
        let bare = last.strip_suffix(".scope").map_or(last, |name| name.rsplit('-').next().unwrap_or(name));
        id(bare)
    });
    of_cgroup.or_else(|| {
        let of_engine = |line: &&str| line.contains("/containers/");
        mountinfo.lines().filter(of_engine).find_map(|line| {
            let after = line.split("/containers/").nth(1)?;
            id(after.split('/').next()?)
        })
    })
}

fn is_id(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_shows_in_different_places() {
        let id = "0123456789abcdef".repeat(4);
        for (cgroup, mountinfo, found) in [
            (format!("12:pids:/docker/{id}\n0::/\n"), String::new(), true),
            (format!("0::/system.slice/docker-{id}.scope\n"), String::new(), true),
            (
                "0::/\n".into(),
                format!("1 2 8:1 /var/lib/docker/containers/{id}/hostname /etc/hostname rw\n"),
                true,
            ),
            ("0::/user.slice/session-1.scope\n".into(), "1 2 8:1 / / rw\n".into(), false),
            (String::new(), "1 2 8:1 /srv/containers/images /mnt rw\n".into(), false),
        ] {
            assert_eq!(of(&cgroup, &mountinfo), found.then(|| id.clone()), "{cgroup}{mountinfo}");
        }
    }
}
