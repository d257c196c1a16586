//! The `cri` stage: a line that a container runtime of Kubernetes wrote below `/var/log/pods`, taken apart.
//!
//! The time becomes the record's, the stream its metadata; the path
//! (`/var/log/pods/<namespace>_<pod>_<uid>/<container>/<restarts>.log`) becomes the labels `namespace`, `pod` and `container`,
//! and the metadata `restart_count`.
//!
//! A longer line comes in parts, which whoever cut the file into records has put together: one behind the other, as they
//! stand in the file (`monitors/file/parts.rs`). Their texts become one, with the time of the first. What lacks its last
//! part is a partial line.

use std::borrow::Cow;
use std::sync::Arc;

use super::Step;
use super::line::Line;
use crate::cri::{Stream, part};
use crate::record::Labels;

pub(super) struct Cri {
    stream: Arc<str>,
    restarts: Arc<str>,
    /// Most chunks are of one file.
    last: Option<Labelled>,
}

/// What becomes of the labels of one path.
struct Labelled {
    base: Arc<Labels>,
    labels: Arc<Labels>,
    restarts: Option<Box<str>>,
}

impl Cri {
    pub fn new() -> Cri {
        Cri { stream: "stream".into(), restarts: "restart_count".into(), last: None }
    }

    pub fn step(&mut self, line: &mut Line<'_>) -> Step {
        let whole = match line.text().clone() {
            Cow::Borrowed(text) => whole(text),
            Cow::Owned(text) => {
                whole(&text).map(|whole| Whole { text: whole.text.into_owned().into(), ..whole })
            }
        };
        let Some(Whole { ns, stream, lacks_last, text }) = whole else { return Step::Unparsed };
        line.time_ns = Some(ns);
        line.set_metadata(&self.stream, stream.name());
        if lacks_last {
            line.set_partial();
        }
        line.keep_text(text);
        self.label(line);
        Step::Next
    }

    fn label(&mut self, line: &mut Line<'_>) {
        if !self.last.as_ref().is_some_and(|last| Arc::ptr_eq(&last.base, line.labels())) {
            let base = line.labels().clone();
            let mut labels = (*base).clone();
            let of_path = base.get("filename").and_then(pod);
            if let Some(pod) = &of_path {
                labels.set("namespace", pod.namespace);
                labels.set("pod", pod.pod);
                labels.set("container", pod.container);
            }
            let restarts = of_path.map(|pod| pod.restarts.into());
            self.last = Some(Labelled { base, labels: Arc::new(labels), restarts });
        }
        if let Some(Labelled { labels, restarts, .. }) = &self.last {
            line.set_labels(labels.clone());
            if let Some(restarts) = restarts {
                line.set_metadata(&self.restarts, restarts);
            }
        }
    }
}

struct Whole<'l> {
    ns: i64,
    stream: Stream,
    lacks_last: bool,
    text: Cow<'l, [u8]>,
}

/// `None`: it is none of a container runtime.
fn whole(line: &[u8]) -> Option<Whole<'_>> {
    let mut parts = line.split(|byte| *byte == b'\n').map(part);
    let first = parts.next()??;
    let time: jiff::Timestamp = std::str::from_utf8(first.time).ok()?.parse().ok()?;
    let ns = i64::try_from(time.as_nanosecond()).ok()?;
    let (mut lacks_last, mut text) = (first.goes_on, Cow::Borrowed(first.text));
    for part in parts {
        let part = part?;
        lacks_last = part.goes_on;
        text.to_mut().extend_from_slice(part.text);
    }
    Some(Whole { ns, stream: first.stream, lacks_last, text })
}

struct Pod<'p> {
    namespace: &'p str,
    pod: &'p str,
    container: &'p str,
    restarts: &'p str,
}

/// `None`: the path is none of a pod.
fn pod(path: &str) -> Option<Pod<'_>> {
    let mut from_end = path.rsplit('/');
    let (file, container, folder) = (from_end.next()?, from_end.next()?, from_end.next()?);
    let restarts = file.split('.').next().filter(|number| number.parse::<u32>().is_ok())?;
    // Neither a namespace nor the name of a pod has an underscore.
    let mut names = folder.splitn(3, '_');
    let (namespace, pod, _uid) = (names.next()?, names.next()?, names.next()?);
    Some(Pod { namespace, pod, container, restarts })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_become_one_line() {
        let told = |line: &str| {
            let whole = whole(line.as_bytes())?;
            Some((
                whole.ns,
                whole.stream.name(),
                whole.lacks_last,
                String::from_utf8(whole.text.into()).unwrap(),
            ))
        };
        let (time, ns) = ("2025-01-31T12:00:00.123456789Z", 1_738_324_800_123_456_789);
        for (line, expected) in [
            ("$ stdout F a text", Some((ns, "stdout", false, "a text"))),
            ("2025-01-31T13:00:00.123456789+01:00 stderr P half ", Some((ns, "stderr", true, "half "))),
            ("$ stdout P a\n$ stdout P  b\r\n$ stdout F c", Some((ns, "stdout", false, "a b\rc"))),
            ("$ stdout P a\n2025-01-31T12:00:01Z stdout P b", Some((ns, "stdout", true, "ab"))),
            ("$ stdout P a\n$ stdout F", Some((ns, "stdout", false, "a"))),
            ("2025-99-31T12:00:00.123456789Z stdout F a text", None),
            ("$ stdout P a\nno part", None),
            ("a text", None),
        ] {
            let expected = expected.map(|(ns, stream, partial, text)| (ns, stream, partial, text.to_owned()));
            assert_eq!(told(&line.replace('$', time)), expected, "{line}");
        }
    }

    #[test]
    fn a_path_names_its_pod() {
        let told = |path| pod(path).map(|pod| [pod.namespace, pod.pod, pod.container, pod.restarts]);
        let path = "/var/log/pods/shop_web-7d4b-x2x_0123-4567/nginx/3.log";
        assert_eq!(told(path), Some(["shop", "web-7d4b-x2x", "nginx", "3"]));
        assert_eq!(told("/var/log/pods/a_b_c/d/0.log.20260101-000000"), Some(["a", "b", "d", "0"]));
        assert_eq!(told("/var/log/app/web.log"), None);
        assert_eq!(told("0.log"), None);
    }
}
