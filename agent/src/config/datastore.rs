//! `[datastore]`: where addresses are kept, and how `[datastore]` and the environment together become a client's
//! configuration. What the file says counts; what it leaves out is taken from Calico's environment variables; what neither
//! says has Calico's default.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use calidris_ipam_etcd::{EtcdConfig, TlsFiles};
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, Error as _, MapAccess, Visitor};

use super::environment::Environment;
use super::secret::read_secret;
use super::{SecretError, SocketPath, duration};

/// Where etcd is unless said otherwise, as in Calico.
const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:2379";
/// Where the embedded datastore is unless said otherwise.
const DEFAULT_FILE: &str = "/var/lib/calidris/datastore.redb";
/// Where `calidris ipam` finds the agent that has the embedded datastore open.
const DEFAULT_SOCKET: &str = "/run/calidris/datastore.sock";

/// `[datastore]`; or, in short, `datastore = "embedded"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Datastore {
    /// The kind of datastore.
    pub kind: DatastoreKind,
    /// URLs of etcd's members.
    #[serde(deserialize_with = "endpoints")]
    pub endpoints: Option<Vec<String>>,
    /// Longest wait for a connection.
    #[serde(deserialize_with = "duration::deserialize")]
    pub connect_timeout: Duration,
    /// Longest wait for an answer.
    #[serde(deserialize_with = "duration::deserialize")]
    pub request_timeout: Duration,
    /// Certificates for https.
    pub tls: Option<Tls>,
    /// User and password.
    pub auth: Option<Auth>,
    /// The file of the embedded datastore.
    pub path: PathBuf,
    /// Where the agent lets operators at the embedded datastore.
    pub socket: SocketPath,
}

/// Kinds of datastore.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DatastoreKind {
    /// etcd 3.4 or later, with Calico's data model.
    #[default]
    Etcd,
    /// A file of this node's own, with the same data model: one node, no etcd.
    Embedded,
}

/// `[datastore.tls]`: PEM files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// Certificate authorities that the server's certificate must come from.
    pub ca_file: Option<PathBuf>,
    /// Our certificate.
    pub cert_file: Option<PathBuf>,
    /// Its key.
    pub key_file: Option<PathBuf>,
}

/// `[datastore.auth]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// User name.
    pub user: String,
    /// File whose first line is the password.
    pub password_file: PathBuf,
}

/// Why the datastore cannot be reached as configured.
#[derive(Debug, thiserror::Error)]
pub enum DatastoreError {
    /// The password.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// File and environment together make no sense.
    #[error("{0}")]
    Invalid(String),
}

impl Default for Datastore {
    fn default() -> Self {
        Self {
            kind: DatastoreKind::Etcd,
            endpoints: None,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(5),
            tls: None,
            auth: None,
            path: PathBuf::from(DEFAULT_FILE),
            socket: SocketPath(PathBuf::from(DEFAULT_SOCKET)),
        }
    }
}

impl Datastore {
    /// The etcd client's configuration. Reads the password file; certificates are read when it connects.
    ///
    /// # Errors
    /// A password that cannot be had; values that do not go together, in the file's terms and in the environment's.
    pub fn etcd(&self, environment: &Environment) -> Result<EtcdConfig, DatastoreError> {
        let endpoints = match (&self.endpoints, environment.endpoints()) {
            (Some(endpoints), _) => endpoints.clone(),
            (None, Some(endpoints)) => endpoints.map_err(DatastoreError::Invalid)?,
            (None, None) => {
                environment.check_type().map_err(DatastoreError::Invalid)?;
                vec![DEFAULT_ENDPOINT.to_owned()]
            }
        };
        let tls = self.tls_files(environment)?;
        if tls.is_none() && endpoints.iter().any(|url| url.starts_with("https://")) {
            return Err(invalid(
                "an endpoint is https, and no certificate authority is named; expected datastore.tls.ca_file or ETCD_CA_CERT_FILE",
            ));
        }
        let user = match &self.auth {
            Some(auth) => Some((auth.user.clone(), auth.password()?)),
            None => environment.user().map_err(DatastoreError::Invalid)?,
        };
        Ok(EtcdConfig {
            tls,
            user,
            connect_timeout: self.connect_timeout,
            request_timeout: self.request_timeout,
            ..EtcdConfig::new(endpoints)
        })
    }

    fn tls_files(&self, environment: &Environment) -> Result<Option<TlsFiles>, DatastoreError> {
        let of_file = self.tls.clone().unwrap_or_default();
        let ca_file = of_file.ca_file.or_else(|| environment.ca_cert_file.clone());
        // A certificate and its key come from the same place.
        let (cert_file, key_file) = match (of_file.cert_file, of_file.key_file) {
            (None, None) => (environment.cert_file.clone(), environment.key_file.clone()),
            pair => pair,
        };
        let identity_files = match (cert_file, key_file) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) => {
                return Err(invalid(
                    "ETCD_CERT_FILE is set, but ETCD_KEY_FILE is not; expected both",
                ));
            }
            (None, Some(_)) => {
                return Err(invalid(
                    "ETCD_KEY_FILE is set, but ETCD_CERT_FILE is not; expected both",
                ));
            }
        };
        match (ca_file, identity_files) {
            (Some(ca_file), identity_files) => Ok(Some(TlsFiles {
                ca_file,
                identity_files,
            })),
            (None, Some(_)) => Err(invalid(
                "a client certificate is set, but no certificate authority; expected ETCD_CA_CERT_FILE (datastore.tls.ca_file), too",
            )),
            (None, None) => Ok(None),
        }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let tls = self.tls.as_ref();
        if tls.is_some_and(|tls| tls.cert_file.is_some() != tls.key_file.is_some()) {
            return Err(
                "datastore.tls: cert_file and key_file go together; one of them is missing".to_owned(),
            );
        }
        if self.kind == DatastoreKind::Embedded {
            let etcds = [
                ("endpoints", self.endpoints.is_some()),
                ("tls", self.tls.is_some()),
                ("auth", self.auth.is_some()),
            ];
            if let Some((key, _)) = etcds.into_iter().find(|(_, is_set)| *is_set) {
                return Err(format!(
                    "datastore.{key} is etcd's; the embedded datastore has none"
                ));
            }
            if !self.path.is_absolute() {
                return Err(format!(
                    "datastore.path: {} is not an absolute path",
                    self.path.display()
                ));
            }
        }
        Ok(())
    }
}

impl Auth {
    /// The password.
    ///
    /// # Errors
    /// The file cannot be read, or its first line is empty.
    pub fn password(&self) -> Result<String, SecretError> {
        read_secret(&self.password_file)
    }
}

fn invalid(why: &str) -> DatastoreError {
    DatastoreError::Invalid(why.to_owned())
}

/// The section, or the kind alone.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Datastore, D::Error> {
    struct SectionOrKind;

    impl<'de> Visitor<'de> for SectionOrKind {
        type Value = Datastore;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a section [datastore], \"etcd\" or \"embedded\"")
        }

        fn visit_str<E: de::Error>(self, kind: &str) -> Result<Datastore, E> {
            Ok(Datastore {
                kind: DatastoreKind::deserialize(de::value::StrDeserializer::new(kind))?,
                ..Datastore::default()
            })
        }

        fn visit_map<A: MapAccess<'de>>(self, section: A) -> Result<Datastore, A::Error> {
            let datastore = Datastore::deserialize(MapAccessDeserializer::new(section))?;
            datastore.check().map_err(A::Error::custom)?;
            Ok(datastore)
        }
    }

    deserializer.deserialize_any(SectionOrKind)
}

fn endpoints<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    let endpoints = Vec::<String>::deserialize(deserializer)?;
    if endpoints.is_empty() {
        return Err(D::Error::custom(
            "no endpoint; expected at least one URL such as \"http://127.0.0.1:2379\"",
        ));
    }
    match endpoints.iter().find(|url| !is_endpoint(url)) {
        None => Ok(Some(endpoints)),
        Some(url) => Err(D::Error::custom(format!(
            "{url:?} is not an endpoint; expected a URL such as \"http://127.0.0.1:2379\""
        ))),
    }
}

pub(super) fn is_endpoint(url: &str) -> bool {
    let rest = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"));
    let host_and_port = rest.and_then(|rest| rest.trim_end_matches('/').rsplit_once(':'));
    host_and_port
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
}
