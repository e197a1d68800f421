//! How etcd is reached.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};

/// Interval of HTTP/2 pings and how long an answer may take: together the time after which a frozen server is noticed.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(1);

/// Where etcd is and how to be let in.
#[derive(Clone)]
pub struct EtcdConfig {
    /// URLs of the members, `http://10.0.0.1:2379` or `https://…`. At least one.
    pub endpoints: Vec<String>,
    /// Certificates, for `https` members. `None`: plain connections.
    pub tls: Option<TlsFiles>,
    /// User and password, if etcd has authentication on.
    pub user: Option<(String, String)>,
    /// How long a connection attempt may take.
    pub connect_timeout: Duration,
    /// How long a request may take, with everything it needs (connecting, authentication).
    pub request_timeout: Duration,
}

/// PEM files for TLS. They are read at every (re)connect, so that replaced certificates are picked up.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Certificates of the authorities that the members' certificates are signed by.
    pub ca_file: PathBuf,
    /// Client certificate and its key, if the members ask for one.
    pub identity_files: Option<(PathBuf, PathBuf)>,
}

/// Why no client could be made. That no member answers is not among it: connections are made when needed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// A certificate file cannot be read.
    #[error("etcd: cannot read {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// An endpoint is no URL, certificates do not parse, or the user was not let in.
    #[error("etcd at {endpoints}: {source}")]
    Client {
        /// The endpoints.
        endpoints: String,
        /// What the client says.
        source: etcd_client::Error,
    },
    /// Authentication did not end in time.
    #[error("etcd at {endpoints}: no answer within {limit:?}")]
    Timeout {
        /// The endpoints.
        endpoints: String,
        /// The limit.
        limit: Duration,
    },
}

impl fmt::Debug for EtcdConfig {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdConfig")
            .field("endpoints", &self.endpoints)
            .field("tls", &self.tls)
            .field("user", &self.user.as_ref().map(|(name, _)| name))
            .field("connect_timeout", &self.connect_timeout)
            .field("request_timeout", &self.request_timeout)
            .finish()
    }
}

impl EtcdConfig {
    /// Plain connections to `endpoints` with the default time limits: 2 s to connect, 5 s for a request.
    pub fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            tls: None,
            user: None,
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(5),
        }
    }

    /// A new client. Talks to etcd only if there is a user to authenticate.
    pub(crate) async fn connect(&self) -> Result<Client, ConnectError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(self.connect_timeout)
            .with_keep_alive(KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT)
            .with_keep_alive_while_idle(true)
            // A member cut off from its leader would let a watch hang for ever otherwise.
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some((user, password)) = &self.user {
            options = options.with_user(user, password);
        }
        if let Some(files) = &self.tls {
            options = options.with_tls(files.read()?);
        }
        let connecting = Client::connect(&self.endpoints, Some(options));
        match tokio::time::timeout(self.request_timeout, connecting).await {
            Ok(Ok(client)) => Ok(client),
            Ok(Err(source)) => Err(ConnectError::Client {
                endpoints: self.endpoints.join(","),
                source,
            }),
            Err(_) => Err(ConnectError::Timeout {
                endpoints: self.endpoints.join(","),
                limit: self.request_timeout,
            }),
        }
    }
}

impl TlsFiles {
    fn read(&self) -> Result<TlsOptions, ConnectError> {
        let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(read(&self.ca_file)?));
        if let Some((certificate, key)) = &self.identity_files {
            tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        Ok(tls)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ConnectError> {
    std::fs::read(path).map_err(|source| ConnectError::File {
        path: path.to_owned(),
        source,
    })
}
