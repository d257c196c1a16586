//! The `cri` stage: a line that a container runtime of Kubernetes wrote below `/var/log/pods`, taken apart.
//!
//! The format is the CRI's: `2026-01-31T12:00:00.123456789Z stdout F the text`. The time becomes the record's, the
//! stream its metadata; the path (`/var/log/pods/<namespace>_<pod>_<uid>/<container>/<restarts>.log`) becomes the
//! labels `namespace`, `pod` and `container`, and the metadata `restart_count`.
//!
//! A longer line comes in parts, whose tag is `P` but for the last one's, `F`. Each part stays a record of its own, with
//! the metadata `cri_part`: a stage sees one line and nothing else, and joining them is the work of whoever cuts
//! a file into records.

use std::borrow::Cow;
use std::sync::Arc;

use super::Step;
use super::line::Line;
use crate::record::Labels;

pub(super) struct Cri {
    stream: Arc<str>,
    part: Arc<str>,
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
        Cri { stream: "stream".into(), part: "cri_part".into(), restarts: "restart_count".into(), last: None }
    }

    pub fn step(&mut self, line: &mut Line<'_>) -> Step {
        let text = line.text().clone();
        let Some(parts) = parts(&text) else { return Step::Unparsed };
        line.time_ns = Some(parts.ns);
        line.set_metadata(&self.stream, parts.stream);
        if parts.is_part {
            line.set_metadata(&self.part, "true");
        }
        match &text {
            Cow::Borrowed(text) => line.keep_text(Cow::Borrowed(&text[parts.text..])),
            Cow::Owned(text) => line.keep_text(Cow::Owned(text[parts.text..].to_vec())),
        }
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

struct Parts {
    ns: i64,
    stream: &'static str,
    is_part: bool,
    /// Where the text begins.
    text: usize,
}

fn parts(line: &[u8]) -> Option<Parts> {
    let mut words = line.splitn(4, |byte| *byte == b' ');
    let (time, stream, tags) = (words.next()?, words.next()?, words.next()?);
    let time: jiff::Timestamp = std::str::from_utf8(time).ok()?.parse().ok()?;
    let stream = ["stdout", "stderr"].into_iter().find(|name| name.as_bytes() == stream)?;
    let is_part = match tags.split(|byte| *byte == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    let text = words.next().map_or(line.len(), |text| line.len() - text.len());
    Some(Parts { ns: i64::try_from(time.as_nanosecond()).ok()?, stream, is_part, text })
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
    fn lines_are_taken_apart() {
        let told = |line: &str| {
            let parts = parts(line.as_bytes())?;
            Some((parts.ns, parts.stream, parts.is_part, line[parts.text..].to_owned()))
        };
        let ns = 1_738_324_800_123_456_789;
        for (line, expected) in [
            ("2025-01-31T12:00:00.123456789Z stdout F a text", Some((ns, "stdout", false, "a text".into()))),
            (
                "2025-01-31T13:00:00.123456789+01:00 stderr P half ",
                Some((ns, "stderr", true, "half ".into())),
            ),
            ("2025-01-31T12:00:00.123456789Z stdout F ", Some((ns, "stdout", false, String::new()))),
            ("2025-01-31T12:00:00.123456789Z stdout F", Some((ns, "stdout", false, String::new()))),
            ("2025-01-31T12:00:00.123456789Z stdout F:x  two", Some((ns, "stdout", false, " two".into()))),
            ("2025-01-31T12:00:00.123456789Z stdin F a", None),
            ("2025-01-31T12:00:00.123456789Z stdout X a", None),
            ("a text", None),
        ] {
            assert_eq!(told(line), expected, "{line}");
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
