//! Which datastore a command works on: of a configuration file, of Calico's environment variables, or the default.

use std::path::{Path, PathBuf};

use calidris_ipam_etcd::{EtcdConfig, TlsFiles};

use crate::config::{self, Config};

use super::Failure;

/// Where etcd is unless said otherwise, as in Calico.
const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:2379";

/// Calico's environment variables. An empty one counts as absent.
#[derive(Debug, Default)]
pub(super) struct Environment {
    endpoints: Option<String>,
    ca_cert_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    username: Option<String>,
    password: Option<String>,
}

impl Environment {
    pub(super) fn of_process() -> Self {
        let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let file = |name: &str| text(name).map(PathBuf::from);
        Self {
            endpoints: text("ETCD_ENDPOINTS"),
            ca_cert_file: file("ETCD_CA_CERT_FILE"),
            cert_file: file("ETCD_CERT_FILE"),
            key_file: file("ETCD_KEY_FILE"),
            username: text("ETCD_USERNAME"),
            password: text("ETCD_PASSWORD"),
        }
    }
}

/// How to reach etcd.
pub(super) fn etcd_config(file: Option<&Path>, environment: &Environment) -> Result<EtcdConfig, Failure> {
    let default = Path::new(config::DEFAULT_FILE);
    match (file, &environment.endpoints) {
        (Some(file), _) => of_file(file),
        (None, Some(endpoints)) => of_environment(endpoints, environment),
        (None, None) if default.exists() => of_file(default),
        (None, None) => of_environment(DEFAULT_ENDPOINT, environment),
    }
}

fn of_file(file: &Path) -> Result<EtcdConfig, Failure> {
    let config = Config::load(file).map_err(|error| Failure::Usage(error.to_string()))?;
    config
        .datastore
        .etcd()
        .map_err(|error| Failure::Usage(error.to_string()))
}

fn of_environment(endpoints: &str, environment: &Environment) -> Result<EtcdConfig, Failure> {
    let endpoints: Vec<String> = endpoints.split(',').map(|url| url.trim().to_owned()).collect();
    if let Some(url) = endpoints.iter().find(|url| !config::is_endpoint(url)) {
        return Err(Failure::Usage(format!(
            "ETCD_ENDPOINTS: {url:?} is not an endpoint; expected URLs such as {DEFAULT_ENDPOINT:?}, separated by commas"
        )));
    }
    let identity_files = match (&environment.cert_file, &environment.key_file) {
        (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
        (None, None) => None,
        (Some(_), None) => return Err(missing("ETCD_KEY_FILE", "ETCD_CERT_FILE")),
        (None, Some(_)) => return Err(missing("ETCD_CERT_FILE", "ETCD_KEY_FILE")),
    };
    let tls = match &environment.ca_cert_file {
        Some(ca_file) => Some(TlsFiles {
            ca_file: ca_file.clone(),
            identity_files,
        }),
        None if identity_files.is_some() => return Err(missing("ETCD_CA_CERT_FILE", "ETCD_CERT_FILE")),
        None => None,
    };
    let user = match (&environment.username, &environment.password) {
        (Some(username), Some(password)) => Some((username.clone(), password.clone())),
        (None, None) => None,
        (Some(_), None) => return Err(missing("ETCD_PASSWORD", "ETCD_USERNAME")),
        (None, Some(_)) => return Err(missing("ETCD_USERNAME", "ETCD_PASSWORD")),
    };
    Ok(EtcdConfig {
        tls,
        user,
        ..EtcdConfig::new(endpoints)
    })
}

fn missing(what: &str, beside: &str) -> Failure {
    Failure::Usage(format!("{beside} is set, but {what} is not; expected both"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> Environment {
        Environment {
            endpoints: Some("https://10.0.0.1:2379, https://10.0.0.2:2379".to_owned()),
            ca_cert_file: Some("/ca.pem".into()),
            cert_file: Some("/cert.pem".into()),
            key_file: Some("/key.pem".into()),
            username: Some("calico".to_owned()),
            password: Some("secret".to_owned()),
        }
    }

    #[test]
    fn calicos_variables_say_where_etcd_is() {
        let config = etcd_config(None, &environment()).unwrap();
        assert_eq!(
            config.endpoints,
            ["https://10.0.0.1:2379", "https://10.0.0.2:2379"]
        );
        let tls = config.tls.unwrap();
        assert_eq!(tls.ca_file, Path::new("/ca.pem"));
        assert_eq!(tls.identity_files, Some(("/cert.pem".into(), "/key.pem".into())));
        assert_eq!(config.user, Some(("calico".to_owned(), "secret".to_owned())));
    }

    #[test]
    fn half_of_a_pair_is_an_error_that_names_the_other_half() {
        type Change = fn(&mut Environment);
        let cases: [(Change, &str); 5] = [
            (
                |e| e.password = None,
                "ETCD_USERNAME is set, but ETCD_PASSWORD is not",
            ),
            (
                |e| e.key_file = None,
                "ETCD_CERT_FILE is set, but ETCD_KEY_FILE is not",
            ),
            (|e| e.cert_file = None, "ETCD_CERT_FILE is not"),
            (|e| e.ca_cert_file = None, "ETCD_CA_CERT_FILE is not"),
            (
                |e| e.endpoints = Some("10.0.0.1:2379".to_owned()),
                "\"10.0.0.1:2379\" is not an endpoint",
            ),
        ];
        for (change, expected) in cases {
            let mut environment = environment();
            change(&mut environment);
            let error = etcd_config(None, &environment).unwrap_err();
            assert!(
                matches!(&error, Failure::Usage(why) if why.contains(expected)),
                "{error}"
            );
        }
    }

    #[test]
    fn a_configuration_that_is_named_is_the_one_that_counts() {
        let error = etcd_config(Some(Path::new("/nowhere/calidris.toml")), &environment()).unwrap_err();
        assert!(error.to_string().contains("/nowhere/calidris.toml"), "{error}");
    }
}
