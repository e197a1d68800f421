//! Calico's environment variables for etcd. Each is looked for with and without `CALICO_` before its name, the longer name
//! first, as Calico does. An empty one counts as absent.

use std::path::PathBuf;

use super::datastore::is_endpoint;

/// What the environment says of the datastore.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// `DATASTORE_TYPE`
    datastore_type: Option<String>,
    /// `ETCD_ENDPOINTS`: URLs, separated by commas.
    endpoints: Option<String>,
    /// `ETCD_DISCOVERY_SRV`: not supported, and refused rather than passed over.
    discovery_srv: Option<String>,
    /// `ETCD_CA_CERT_FILE`
    pub(super) ca_cert_file: Option<PathBuf>,
    /// `ETCD_CERT_FILE`
    pub(super) cert_file: Option<PathBuf>,
    /// `ETCD_KEY_FILE`
    pub(super) key_file: Option<PathBuf>,
    /// `ETCD_USERNAME`
    username: Option<String>,
    /// `ETCD_PASSWORD`
    password: Option<String>,
}

impl Environment {
    /// That of this process.
    pub fn of_process() -> Self {
        Self::of(|name| std::env::var(name).ok())
    }

    fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let text = |name: &str| {
            [format!("CALICO_{name}"), name.to_owned()]
                .iter()
                .find_map(|name| variable(name).filter(|value| !value.is_empty()))
        };
        let file = |name: &str| text(name).map(PathBuf::from);
        Self {
            datastore_type: text("DATASTORE_TYPE"),
            endpoints: text("ETCD_ENDPOINTS"),
            discovery_srv: text("ETCD_DISCOVERY_SRV"),
            ca_cert_file: file("ETCD_CA_CERT_FILE"),
            cert_file: file("ETCD_CERT_FILE"),
            key_file: file("ETCD_KEY_FILE"),
            username: text("ETCD_USERNAME"),
            password: text("ETCD_PASSWORD"),
        }
    }

    /// Whether it says where etcd is.
    pub fn names_etcd(&self) -> bool {
        self.endpoints.is_some()
    }

    /// The endpoints, if any are named; `Err` with what is wrong with them.
    pub(super) fn endpoints(&self) -> Option<Result<Vec<String>, String>> {
        let text = self.endpoints.as_ref()?;
        if let Err(why) = self.check_type() {
            return Some(Err(why));
        }
        let endpoints: Vec<String> = text.split(',').map(|url| url.trim().to_owned()).collect();
        Some(match endpoints.iter().find(|url| !is_endpoint(url)) {
            None => Ok(endpoints),
            Some(url) => Err(format!(
                "ETCD_ENDPOINTS: {url:?} is not an endpoint; expected URLs such as \"http://127.0.0.1:2379\", separated by commas"
            )),
        })
    }

    /// What the environment asks for and cannot be had.
    pub(super) fn check_type(&self) -> Result<(), String> {
        if let Some(other) = self.datastore_type.as_ref().filter(|kind| *kind != "etcdv3") {
            return Err(format!(
                "DATASTORE_TYPE is {other:?}; only \"etcdv3\" is supported"
            ));
        }
        if self.endpoints.is_none() && self.discovery_srv.is_some() {
            return Err("ETCD_DISCOVERY_SRV is not supported; name the members in ETCD_ENDPOINTS".to_owned());
        }
        Ok(())
    }

    /// User and password, if both are named.
    pub(super) fn user(&self) -> Result<Option<(String, String)>, String> {
        match (&self.username, &self.password) {
            (Some(username), Some(password)) => Ok(Some((username.clone(), password.clone()))),
            (None, None) => Ok(None),
            (Some(_), None) => {
                Err("ETCD_USERNAME is set, but ETCD_PASSWORD is not; expected both".to_owned())
            }
            (None, Some(_)) => {
                Err("ETCD_PASSWORD is set, but ETCD_USERNAME is not; expected both".to_owned())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::super::Datastore;
    use super::*;

    fn environment(more: &[(&str, &str)]) -> Environment {
        let mut variables = BTreeMap::from([
            ("ETCD_ENDPOINTS", "https://10.0.0.1:2379, https://10.0.0.2:2379"),
            ("ETCD_CA_CERT_FILE", "/ca.pem"),
            ("ETCD_CERT_FILE", "/cert.pem"),
            ("ETCD_KEY_FILE", "/key.pem"),
            ("ETCD_USERNAME", "calico"),
            ("ETCD_PASSWORD", "secret"),
        ]);
        variables.extend(more.iter().copied());
        Environment::of(|name| variables.get(name).map(|&value| value.to_owned()))
    }

    fn datastore(text: &str) -> Datastore {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn calicos_variables_say_what_the_file_does_not() {
        let config = datastore("").etcd(&environment(&[])).unwrap();
        assert_eq!(
            config.endpoints,
            ["https://10.0.0.1:2379", "https://10.0.0.2:2379"]
        );
        let tls = config.tls.unwrap();
        assert_eq!(tls.ca_file, Path::new("/ca.pem"));
        assert_eq!(tls.identity_files, Some(("/cert.pem".into(), "/key.pem".into())));
        assert_eq!(config.user, Some(("calico".to_owned(), "secret".to_owned())));
        let plain = datastore("").etcd(&Environment::default()).unwrap();
        assert_eq!(plain.endpoints, ["http://127.0.0.1:2379"]);
        assert!(plain.tls.is_none() && plain.user.is_none());
    }

    #[test]
    fn the_file_counts_key_by_key_and_the_longer_name_before_the_shorter() {
        let file = datastore(
            "endpoints = [\"https://10.9.9.9:2379\"]\ntls = { cert_file = \"/own.pem\", key_file = \"/own.key\" }\n",
        );
        let config = file.etcd(&environment(&[])).unwrap();
        assert_eq!(config.endpoints, ["https://10.9.9.9:2379"]);
        let tls = config.tls.unwrap();
        assert_eq!(tls.ca_file, Path::new("/ca.pem"), "the file has none");
        assert_eq!(tls.identity_files, Some(("/own.pem".into(), "/own.key".into())));
        let longer = environment(&[
            ("CALICO_ETCD_ENDPOINTS", "https://10.7.7.7:2379"),
            ("CALICO_ETCD_CA_CERT_FILE", ""),
        ]);
        let config = datastore("").etcd(&longer).unwrap();
        assert_eq!(config.endpoints, ["https://10.7.7.7:2379"]);
        assert_eq!(
            config.tls.unwrap().ca_file,
            Path::new("/ca.pem"),
            "empty is absent"
        );
    }

    #[test]
    fn what_makes_no_sense_is_an_error_that_says_what_is_missing() {
        for (more, expected) in [
            (
                &[("ETCD_PASSWORD", "")][..],
                "ETCD_USERNAME is set, but ETCD_PASSWORD is not",
            ),
            (
                &[("ETCD_KEY_FILE", "")],
                "ETCD_CERT_FILE is set, but ETCD_KEY_FILE is not",
            ),
            (&[("ETCD_CERT_FILE", "")], "ETCD_CERT_FILE is not"),
            (&[("ETCD_CA_CERT_FILE", "")], "expected ETCD_CA_CERT_FILE"),
            (
                &[
                    ("ETCD_CA_CERT_FILE", ""),
                    ("ETCD_CERT_FILE", ""),
                    ("ETCD_KEY_FILE", ""),
                ],
                "an endpoint is https",
            ),
            (
                &[("ETCD_ENDPOINTS", "10.0.0.1:2379")],
                "\"10.0.0.1:2379\" is not an endpoint",
            ),
            (
                &[("ETCD_ENDPOINTS", ""), ("ETCD_DISCOVERY_SRV", "example.com")],
                "ETCD_DISCOVERY_SRV is not supported",
            ),
            (&[("DATASTORE_TYPE", "kubernetes")], "only \"etcdv3\""),
        ] {
            let error = datastore("").etcd(&environment(more)).unwrap_err().to_string();
            assert!(error.contains(expected), "{more:?}: {error}");
        }
    }
}
