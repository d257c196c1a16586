//! Include and exclude patterns: which files match, and which folders can hold one. Pure.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};
use crate::glob::Glob;

/// One include pattern.
#[derive(Clone, Debug)]
pub struct Pattern {
    base: PathBuf,
    whole: Glob,
    /// The names between `base` and the first `**`, one matcher each.
    names: Vec<Glob>,
    /// Something follows `names` that crosses folders.
    open: bool,
}

/// A set of exclude patterns.
#[derive(Clone, Debug)]
pub struct Excludes(Vec<Glob>);

impl Pattern {
    /// `text` is an absolute path with wildcards.
    pub fn parse(text: &str) -> Result<Pattern> {
        if !text.starts_with('/') {
            return Err(Error::new(format!("the pattern {text:?} is not an absolute path")));
        }
        let mut rest: Vec<&str> = text.split('/').filter(|name| !name.is_empty()).collect();
        let whole = glob(&format!("/{}", rest.join("/")))?;
        let last = rest.pop().ok_or_else(|| Error::new("the pattern \"/\" names no file"))?;
        let literal = rest.iter().take_while(|name| !has_wildcard(name)).count();
        let base = rest[..literal].iter().fold(PathBuf::from("/"), |path, name| path.join(name));
        let mut names = Vec::new();
        let mut open = false;
        for name in rest[literal..].iter().chain([&last]) {
            // Braces may hold a slash, and then the names are not what they seem.
            open = name.contains("**") || name.contains('{') && !name.contains('}');
            if open {
                break;
            }
            names.push(glob(name)?);
        }
        Ok(Pattern { base, whole, names, open })
    }

    /// The folder where a search begins.
    pub fn base(&self) -> &Path {
        &self.base
    }

    pub fn matches(&self, path: &Path) -> bool {
        self.whole.matches(path.as_os_str().as_bytes())
    }

    /// Whether the folder `name`, `depth` folders below [`Pattern::base`] (its children have 1), can hold a
    /// match. May say yes in vain, never no.
    pub fn enters(&self, name: &Path, depth: usize) -> bool {
        match self.names.get(depth - 1) {
            Some(glob) => {
                glob.matches(name.as_os_str().as_bytes()) && (self.open || depth < self.names.len())
            }
            None => self.open,
        }
    }
}

impl Excludes {
    pub fn parse<'a>(patterns: impl IntoIterator<Item = &'a String>) -> Result<Excludes> {
        patterns.into_iter().map(|text| glob(text)).collect::<Result<_>>().map(Excludes)
    }

    /// Of a folder: with everything below.
    pub fn matches(&self, path: &Path) -> bool {
        self.0.iter().any(|glob| glob.matches(path.as_os_str().as_bytes()))
    }
}

fn has_wildcard(name: &str) -> bool {
    name.contains(['*', '?', '[', ']', '{', '}', '\\'])
}

fn glob(text: &str) -> Result<Glob> {
    Glob::path(text).context(|| format!("the pattern {text:?} is not one"))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    /// A file matches exactly if it is found by walking from the base through the folders that are entered.
    fn check(pattern: &str, base: &str, yes: &[&str], no: &[&str]) {
        let parsed = Pattern::parse(pattern).unwrap();
        assert_eq!(parsed.base(), Path::new(base), "{pattern}");
        for path in yes {
            assert!(parsed.matches(Path::new(path)), "{pattern} matches {path}");
            assert!(reaches(&parsed, Path::new(path)), "{pattern} reaches {path}");
        }
        for path in no {
            assert!(!parsed.matches(Path::new(path)), "{pattern} does not match {path}");
        }
    }

    fn reaches(pattern: &Pattern, path: &Path) -> bool {
        let Ok(below) = path.parent().unwrap().strip_prefix(pattern.base()) else { return false };
        below.iter().enumerate().all(|(index, name)| pattern.enters(Path::new(name), index + 1))
    }

    #[test]
    fn patterns() {
        check("/var/log/app.log", "/var/log", &["/var/log/app.log"], &["/var/log/app.log.1"]);
        check("/var/log/*.log", "/var/log", &["/var/log/a.log", "/var/log/.log"], &["/var/log/x/a.log"]);
        check("/v/**/*.log", "/v", &["/v/a.log", "/v/x/a.log", "/v/x/y/z.log"], &["/w/a.log", "/v/x/a.txt"]);
        check("/v/*/app/*.log", "/v", &["/v/x/app/a.log"], &["/v/app/a.log", "/v/x/y/app/a.log"]);
        check("/v/{a,b}/x?.log", "/v", &["/v/a/x1.log", "/v/b/x2.log"], &["/v/c/x1.log", "/v/a/x12.log"]);
        check("/v/{a/b,c}/x", "/v", &["/v/a/b/x", "/v/c/x"], &["/v/a/x"]);
        check("/v/**", "/v", &["/v/a", "/v/x/a"], &["/w"]);
        check("/v/[ab]*/\\*", "/v", &["/v/ax/*"], &["/v/ax/b", "/v/cx/*"]);
        check("//v//x.log", "/v", &["/v/x.log"], &["/x.log"]);
    }

    #[test]
    fn only_folders_that_can_hold_a_match_are_entered() {
        let pattern = Pattern::parse("/v/a*/b/*.log").unwrap();
        let enters = |name: &str, depth| pattern.enters(Path::new(name), depth);
        assert!(enters("ax", 1) && enters("b", 2));
        assert!(!enters("x", 1) && !enters("c", 2) && !enters("x.log", 3) && !enters("d", 4));
        let open = Pattern::parse("/v/a*/**/x").unwrap();
        assert!(open.enters(Path::new("ab"), 1) && open.enters(Path::new("anything"), 2));
        assert!(!open.enters(Path::new("b"), 1));
    }

    #[test]
    fn names_are_bytes() {
        let pattern = Pattern::parse("/v/*.log").unwrap();
        assert!(pattern.matches(Path::new("/v/new\nline.log")));
        assert!(pattern.matches(Path::new(OsStr::from_bytes(b"/v/\xff\xfe.log"))));
    }

    #[test]
    fn what_is_no_pattern_is_said() {
        assert!(Pattern::parse("relative/*.log").is_err());
        assert!(Pattern::parse("/").is_err());
        assert!(Pattern::parse("/v/[").unwrap_err().to_string().contains("/v/["));
    }

    #[test]
    fn excludes() {
        let excludes = Excludes::parse(&["/v/*.gz".to_owned(), "/v/private".to_owned()]).unwrap();
        assert!(excludes.matches(Path::new("/v/a.gz")) && excludes.matches(Path::new("/v/private")));
        assert!(!excludes.matches(Path::new("/v/a.log")));
    }
}
