//! Control groups of a lab: one at the top of every hierarchy, version 1 or 2, for everything that a machine's
//! container runtime makes below it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::eventually::eventually_uninterrupted;

/// How long the kernel may take to let go of a group whose last process has ended.
const EMPTY_WITHIN: Duration = Duration::from_secs(5);

/// Makes the group of that name in every hierarchy.
///
/// # Errors
/// When the kernel refuses.
pub fn create(name: &str) -> anyhow::Result<()> {
    for hierarchy in hierarchies()? {
        let group = hierarchy.join(name);
        std::fs::create_dir_all(&group).with_context(|| format!("make control group {}", group.display()))?;
        // A new group of the version 1 controller cpuset may use no processor and no memory until told (cpusets(7)).
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let (above, below) = (hierarchy.join(file), group.join(file));
            if above.exists() && below.exists() {
                let value = std::fs::read_to_string(&above)?;
                std::fs::write(&below, value.trim())
                    .with_context(|| format!("write {value:?} to {}", below.display()))?;
            }
        }
    }
    Ok(())
}

/// Removes the group of that name, and all below it, from every hierarchy. Processes must be gone or going.
///
/// # Errors
/// When one of them still has processes.
pub fn remove(name: &str) -> anyhow::Result<()> {
    ensure!(
        !name.is_empty() && !name.contains(['/', '.']),
        "{name:?} is no name of a control group"
    );
    for hierarchy in hierarchies()? {
        let group = hierarchy.join(name);
        if group.exists() {
            let what = format!("control group {} is removed", group.display());
            eventually_uninterrupted(&what, EMPTY_WITHIN, || remove_with_all_below(&group))?;
        }
    }
    Ok(())
}

/// Where hierarchies are mounted.
fn hierarchies() -> anyhow::Result<Vec<PathBuf>> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    let of_cgroups = mounts.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (path, kind) = (words.next()?, words.next()?);
        matches!(kind, "cgroup" | "cgroup2").then(|| PathBuf::from(path))
    });
    Ok(of_cgroups.collect())
}

/// Groups are removed as directories without looking at the files in them, children first.
fn remove_with_all_below(group: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_with_all_below(&entry.path())?;
        }
    }
    std::fs::remove_dir(group).with_context(|| format!("remove {}", group.display()))
}
