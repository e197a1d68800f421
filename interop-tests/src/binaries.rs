//! Where the programs under test are: beside this one, as cargo and packages put them.

use std::path::PathBuf;

use anyhow::{Context, ensure};

/// The type of our plugin in network configurations; CNI wants the program to have the same name.
pub const PLUGIN: &str = "calidris-cni";

/// The programs under test.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// The folder that has them all, `CNI_PATH` for the runtimes.
    pub folder: PathBuf,
    /// `calidris`: the agent and its command line.
    pub agent: PathBuf,
    /// `calidris-lab`: the servers in pods.
    pub lab: PathBuf,
}

impl Binaries {
    /// Finds them beside the running program; a test runs from the folder `deps` below.
    ///
    /// # Errors
    /// When one is not there. Cargo does not build them for a test: `cargo build --workspace` does.
    pub fn find() -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("find the running program")?;
        let mut folder = own
            .parent()
            .context("the running program lies in a folder")?
            .to_owned();
        if folder.file_name().is_some_and(|name| name == "deps") {
            folder.pop();
        }
        for program in ["calidris", PLUGIN, "calidris-lab"] {
            let path = folder.join(program);
            ensure!(
                path.exists(),
                "there is no {}; build the whole workspace first: `cargo build --workspace` (`make test` does)",
                path.display()
            );
        }
        Ok(Self {
            agent: folder.join("calidris"),
            lab: folder.join("calidris-lab"),
            folder,
        })
    }
}
