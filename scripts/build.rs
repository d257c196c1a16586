//! What cargo hands to the linker for the program alone: how it lies in memory.

use std::env;
use std::path::Path;
use std::process::Command;

/// Whose loader knows relocations in their short form: a quarter of a megabyte less to read at every start.
const SHORT_RELOCATIONS_SINCE: (u32, u32) = (2, 36);

fn main() {
    println!("cargo:rerun-if-changed=scripts/build.rs");
    println!("cargo:rerun-if-changed=scripts/seldom.ld");
    let target = |name| env::var(format!("CARGO_CFG_TARGET_{name}")).unwrap_or_default();
    if target("OS") != "linux" || target("ENV") != "gnu" {
        return;
    }
    let here = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    println!("cargo:rustc-link-arg-bins=-Wl,-T,{here}/scripts/seldom.ld");
    if env::var("OPT_LEVEL").is_ok_and(|level| level != "z") // there the file counts, which it makes longer
        && env::var("HOST") == env::var("TARGET")
        && !target("FEATURE").contains("crt-static")
        && let Some(folder) = unwinder()
    {
        println!("cargo:rustc-link-search=native={folder}");
        println!("cargo:rustc-link-lib=static:-bundle=gcc_eh");
    }
    if c_library().is_some_and(|version| version >= SHORT_RELOCATIONS_SINCE) {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// Where the compiler has what a panic needs on its way out. In the program a few pages of it are never looked at; as
/// a library of its own (libgcc_s) it is read and relocated at every start.
fn unwinder() -> Option<String> {
    let output = Command::new("cc").arg("-print-file-name=libgcc_eh.a").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let file = Path::new(text.trim());
    file.is_absolute().then(|| file.parent()?.to_str().map(str::to_owned))?
}

/// Of this host: who builds against an older one may run on it.
fn c_library() -> Option<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
}
