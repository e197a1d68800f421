//! Container images made here, since a lab reaches no registry: one layer, packed as an OCI archive (image-spec 1.0,
//! image-layout.md) that `ctr images import` takes.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::json;

use crate::netns::run;

/// Debian's static busybox, which needs no other file.
pub const BUSYBOX: &str = "/bin/busybox";
/// An image of busybox alone: what runs in a lab's pods, and the sandbox of each pod.
pub const BUSYBOX_IMAGE: &str = "calidris.test/busybox:1";

/// What pods serve: the address that they see the client come from. httpd says `[::ffff:192.0.2.1]`.
const WHOAMI: &str = r#"#!/bin/sh
address=${REMOTE_ADDR#"[::ffff:"}
printf 'Content-Type: text/plain\n\n%s\n' "${address%]}"
"#;

/// Serves [`WHOAMI`], and ends at once when told to.
pub const SERVE: &str = "trap 'exit 0' TERM; httpd -f -h /www & wait";

/// A shell script that asks each `host:port` what address it sees, and prints a line for each; an empty one for no answer
/// within three seconds. (busybox' wget would be the obvious client; given a timeout it crashes.)
#[must_use]
pub fn ask_script(others: &[String]) -> String {
    let ask = r"printf 'GET /cgi-bin/whoami HTTP/1.0\r\n\r\n' | timeout 3 nc -w 3 ${other%:*} ${other##*:} 2>/dev/null | tail -n 1";
    format!("for other in {}; do echo $({ask}); done", others.join(" "))
}

/// An image in the making: a folder with the files of its only layer.
#[derive(Debug)]
pub struct Image {
    name: String,
    folder: PathBuf,
}

impl Image {
    /// An empty image, made in a folder of its own.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn create(name: &str, folder: &Path) -> anyhow::Result<Self> {
        let image = Self {
            name: name.to_owned(),
            folder: folder.to_owned(),
        };
        std::fs::create_dir_all(image.root()).with_context(|| format!("make {}", folder.display()))?;
        Ok(image)
    }

    /// Adds busybox with all its names, a folder for temporary files, and the page `/cgi-bin/whoami` in `/www`.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn add_busybox(&self) -> anyhow::Result<()> {
        self.add_file(Path::new(BUSYBOX), "bin/busybox")?;
        for applet in run(Command::new(BUSYBOX).arg("--list"))?.lines() {
            let link = self.root().join("bin").join(applet);
            if !link.exists() {
                symlink("busybox", &link).with_context(|| format!("make {}", link.display()))?;
            }
        }
        for folder in ["tmp", "www/cgi-bin"] {
            std::fs::create_dir_all(self.root().join(folder))?;
        }
        let page = self.root().join("www/cgi-bin/whoami");
        std::fs::write(&page, WHOAMI)?;
        std::fs::set_permissions(&page, std::fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// Adds a file with its mode.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn add_file(&self, from: &Path, to: &str) -> anyhow::Result<()> {
        let to = self.root().join(to.trim_start_matches('/'));
        let folder = to.parent().context("a file lies in a folder")?;
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        std::fs::copy(from, &to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
        Ok(())
    }

    /// Adds a program and the shared libraries that it asks for, each at its own path.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn add_program(&self, from: &Path, to: &str) -> anyhow::Result<()> {
        self.add_file(from, to)?;
        // ldd fails for a static program, which needs nothing.
        let Ok(libraries) = run(Command::new("ldd").arg(from)) else {
            return Ok(());
        };
        let paths = libraries
            .split_ascii_whitespace()
            .filter(|word| word.starts_with('/'));
        for library in paths {
            self.add_file(Path::new(library), library)?;
        }
        Ok(())
    }

    /// Packs the image; returns the archive.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn pack(&self, entrypoint: &[&str]) -> anyhow::Result<PathBuf> {
        let blobs = self.folder.join("layout/blobs/sha256");
        std::fs::create_dir_all(&blobs)?;
        let layer = self.folder.join("layer");
        tar(&self.root(), &layer)?;
        let (layer, layer_size) = add_blob(&blobs, &layer)?;
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": { "Entrypoint": entrypoint, "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"] },
            "rootfs": { "type": "layers", "diff_ids": [layer] },
        });
        let (config, config_size) = self.add_json(&blobs, &config)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size,
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": layer_size,
            }],
        });
        let (manifest, manifest_size) = self.add_json(&blobs, &manifest)?;
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": manifest,
                "size": manifest_size,
                "annotations": { "io.containerd.image.name": self.name },
            }],
        });
        let layout = self.folder.join("layout");
        std::fs::write(layout.join("index.json"), index.to_string())?;
        std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let archive = self.folder.join("image.tar");
        tar(&layout, &archive)?;
        Ok(archive)
    }

    fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    fn add_json(&self, blobs: &Path, value: &serde_json::Value) -> anyhow::Result<(String, u64)> {
        let file = self.folder.join("json");
        std::fs::write(&file, value.to_string())?;
        add_blob(blobs, &file)
    }
}

/// Makes and packs [`BUSYBOX_IMAGE`].
///
/// # Errors
/// When a file cannot be read or written.
pub fn busybox(folder: &Path) -> anyhow::Result<PathBuf> {
    let image = Image::create(BUSYBOX_IMAGE, folder)?;
    image.add_busybox()?;
    image.pack(&["/bin/sleep", "infinity"])
}

fn tar(folder: &Path, archive: &Path) -> anyhow::Result<()> {
    let mut command = Command::new("tar");
    command.args(["--owner=0", "--group=0", "--numeric-owner", "--sort=name", "-C"]);
    command.arg(folder).arg("-cf").arg(archive).arg(".");
    run(&mut command).map(drop)
}

/// Moves a file to where its digest names it; returns digest and size.
fn add_blob(blobs: &Path, file: &Path) -> anyhow::Result<(String, u64)> {
    let printed = run(Command::new("sha256sum").arg(file))?;
    let Some(digest) = printed.split_ascii_whitespace().next() else {
        bail!("sha256sum printed {printed:?}");
    };
    let size = std::fs::metadata(file)?.len();
    std::fs::rename(file, blobs.join(digest))?;
    Ok((format!("sha256:{digest}"), size))
}
