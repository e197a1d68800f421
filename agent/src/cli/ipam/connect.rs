//! Which datastore a command works on: of a configuration file, of Calico's environment variables, or the default.

use std::path::Path;

use crate::config::{self, Config, Datastore, Environment};
use crate::datastore::store::AnyStore;

use super::Failure;

/// The datastore. What a configuration file leaves out is taken from the environment, too.
pub(super) fn open(file: Option<&Path>, environment: &Environment) -> Result<AnyStore, Failure> {
    let default = Path::new(config::DEFAULT_FILE);
    let datastore = match file {
        Some(file) => of_file(file)?,
        None if environment.names_etcd() => Datastore::default(),
        None if default.exists() => of_file(default)?,
        None => Datastore::default(),
    };
    AnyStore::open_for_operator(&datastore, environment).map_err(|error| Failure::Usage(format!("{error:#}")))
}

fn of_file(file: &Path) -> Result<Datastore, Failure> {
    let config = Config::load(file).map_err(|error| Failure::Usage(error.to_string()))?;
    Ok(config.datastore)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_that_is_named_is_the_one_that_counts() {
        let file = Path::new("/nowhere/calidris.toml");
        let error = open(Some(file), &Environment::default()).unwrap_err();
        assert!(error.to_string().contains("/nowhere/calidris.toml"), "{error}");
    }
}
