//! The initramfs: our programs and those of this machine that the proof runs, with their shared libraries; modules with
//! what they depend on, in the order in which they are loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use super::cpio::Archive;
use super::{MODULES, PROGRAMS};
use crate::binaries::{Binaries, PLUGIN};
use crate::netns;

/// Writes the archive. `root` is the unpacked package of the kernel.
pub(super) fn write(archive: &Path, root: &Path, binaries: &Binaries, init: &str) -> anyhow::Result<()> {
    let output = File::create(archive).with_context(|| format!("create {}", archive.display()))?;
    let mut output = Archive::new(BufWriter::new(output));
    let mut files: BTreeMap<String, PathBuf> = BTreeMap::new();
    let stripped = archive.with_extension("stripped");
    std::fs::create_dir_all(&stripped)?;
    for program in ["calidris", PLUGIN, "calidris-lab"] {
        let copy = stripped.join(program);
        netns::run(
            Command::new("strip")
                .arg("-o")
                .arg(&copy)
                .arg(binaries.folder.join(program)),
        )?;
        files.insert(format!("bin/{program}"), copy);
    }
    for program in PROGRAMS.iter().chain(&["busybox"]) {
        files.insert(format!("bin/{program}"), installed(program)?);
    }
    let mut libraries = BTreeMap::new();
    for path in files.values() {
        libraries.extend(libraries_of(path)?);
    }
    files.extend(libraries);
    let (order, modules) = modules(root)?;

    for directory in directories(
        files
            .keys()
            .map(String::as_str)
            .chain(["modules/x", "dev/x", "etc/x"]),
    ) {
        output.directory(&directory)?;
    }
    output.device("dev/console", (5, 1))?;
    // tcpdump looks for the user that it runs as.
    output.file("etc/passwd", b"root:x:0:0:root:/:/bin/sh\n")?;
    output.file("etc/group", b"root:x:0:\n")?;
    for (name, path) in &files {
        let contents = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        output.file(name, &contents)?;
    }
    for (name, contents) in &modules {
        output.file(&format!("modules/{name}.ko"), contents)?;
    }
    let order: Vec<String> = order.iter().map(|name| format!("{name}.ko")).collect();
    output.file("modules/order", order.join("\n").as_bytes())?;
    output.file("init", init.as_bytes())?;
    output.finish()?;
    std::fs::remove_dir_all(&stripped)?;
    Ok(())
}

fn installed(program: &str) -> anyhow::Result<PathBuf> {
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin"]
        .iter()
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.exists())
        .with_context(|| format!("{program} is not installed"))
}

/// The shared libraries of a program, by their paths in the archive; none for a static one.
fn libraries_of(program: &Path) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let paths = text.split_ascii_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths
        .map(|path| (path.trim_start_matches('/').to_owned(), PathBuf::from(path)))
        .collect())
}

/// Every folder that the files need, the outer before the inner.
fn directories<'a>(files: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for file in files {
        let mut path = Path::new(file);
        while let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            all.insert(parent.to_string_lossy().into_owned());
            path = parent;
        }
    }
    all
}

/// Modules: the order in which to load them, and their contents.
type Modules = (Vec<String>, BTreeMap<String, Vec<u8>>);

/// Modules with those they depend on: the order in which to load them, and their contents.
fn modules(root: &Path) -> anyhow::Result<Modules> {
    let mut found = BTreeMap::new();
    find(&root.join("lib/modules"), &mut found)?;
    ensure!(!found.is_empty(), "no modules below {}", root.display());
    let (mut order, mut contents) = (Vec::new(), BTreeMap::new());
    for module in MODULES {
        // What is not there is part of the kernel.
        if found.contains_key(*module) {
            load(module, &found, &mut order, &mut contents)?;
        }
    }
    Ok((order, contents))
}

fn find(folder: &Path, found: &mut BTreeMap<String, PathBuf>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() && !path.is_symlink() {
            find(&path, found)?;
        } else if let Some((name, "ko" | "ko.xz")) = name.split_once('.') {
            found.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn load(
    module: &str,
    found: &BTreeMap<String, PathBuf>,
    order: &mut Vec<String>,
    contents: &mut BTreeMap<String, Vec<u8>>,
) -> anyhow::Result<()> {
    if contents.contains_key(module) {
        return Ok(());
    }
    let path = found.get(module).with_context(|| format!("no module {module}"))?;
    let bytes = if path.extension().is_some_and(|extension| extension == "xz") {
        Command::new("xz").arg("-dc").arg(path).output()?.stdout
    } else {
        std::fs::read(path)?
    };
    let needed = depends(&bytes);
    contents.insert(module.to_owned(), bytes);
    for needed in needed {
        load(&needed, found, order, contents)?;
    }
    order.push(module.to_owned());
    Ok(())
}

/// What a module says that it depends on (`depends=` in its section `.modinfo`).
fn depends(module: &[u8]) -> Vec<String> {
    const MARK: &[u8] = b"\0depends=";
    let Some(at) = module.windows(MARK.len()).position(|window| window == MARK) else {
        return Vec::new();
    };
    let rest = module.get(at + MARK.len()..).unwrap_or_default();
    let text = rest.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_modules_needs_are_read() {
        assert_eq!(
            depends(b"x\0depends=tunnel4,ip-tunnel\0retpoline=Y\0"),
            ["tunnel4", "ip_tunnel"]
        );
        assert_eq!(depends(b"x\0depends=\0"), [""; 0]);
        assert_eq!(depends(b"x"), [""; 0]);
    }

    #[test]
    fn folders_come_before_what_is_in_them() {
        let all: Vec<String> = directories(["usr/lib/a/b", "bin/c"].into_iter())
            .into_iter()
            .collect();
        assert_eq!(all, ["bin", "usr", "usr/lib", "usr/lib/a"]);
    }
}
