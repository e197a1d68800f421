//! How `[datastore]` becomes the etcd client's configuration.

use calidris_ipam_etcd::{EtcdConfig, TlsFiles};

use super::{Datastore, SecretError};

impl Datastore {
    /// The client's configuration. Reads the password file; certificates are read when it connects.
    ///
    /// # Errors
    /// A password file that cannot be read or is empty.
    pub fn etcd(&self) -> Result<EtcdConfig, SecretError> {
        let tls = self.tls.as_ref().map(|tls| TlsFiles {
            ca_file: tls.ca_file.clone(),
            identity_files: tls.cert_file.clone().zip(tls.key_file.clone()),
        });
        let user = match &self.auth {
            Some(auth) => Some((auth.user.clone(), auth.password()?)),
            None => None,
        };
        Ok(EtcdConfig {
            tls,
            user,
            connect_timeout: self.connect_timeout,
            request_timeout: self.request_timeout,
            ..EtcdConfig::new(self.endpoints.clone())
        })
    }
}
