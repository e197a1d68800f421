//! The agent's sockets: Unix sockets made so that only root can connect and without stealing a living agent's, and the
//! one loop that takes connections on any of them.
//!
//! Invariants: so many clients are attended at a time, more wait in the kernel's backlog; an error of `accept(2)` never ends
//! the loop, which backs off as long as they last.

use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener as AsyncUnixListener, UnixStream as AsyncUnixStream};
use tokio::sync::Semaphore;
use tracing::warn;

/// Pause after the first error of `accept(2)`; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Why a socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody answers there.
    #[error("{}: another process listens on this socket; is an agent running already?", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// There is something else under that name.
    #[error("{}: exists and is not a socket; remove it or configure another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error("{}: cannot listen: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// Listens at `path`, mode 0600. Creates the directory; replaces the socket that a dead predecessor left.
///
/// # Errors
/// See [`ListenError`].
pub fn listen(path: &Path) -> Result<UnixListener, ListenError> {
    let failed = |source| ListenError::Io {
        path: path.to_owned(),
        source,
    };
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .map_err(failed)?;
    }
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(ListenError::InUse {
                path: path.to_owned(),
            });
        }
        Ok(_) => fs::remove_file(path).map_err(failed)?,
    }
    // Bound under another name, restricted, then given its own: at no moment can others connect.
    let draft = path.with_extension("new");
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&draft).map_err(failed)?;
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    fs::rename(&draft, path).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// What connections are taken from.
pub(crate) trait Accept: Send + Sync {
    /// A connection.
    type Stream: Send + 'static;

    /// `accept(2)`
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Accept for AsyncUnixListener {
    type Stream = AsyncUnixStream;

    async fn accept(&self) -> io::Result<AsyncUnixStream> {
        Ok(Self::accept(self).await?.0)
    }
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        Ok(Self::accept(self).await?.0)
    }
}

/// Attends each client in a task of its own, `max_clients` at a time, until this task is dropped; clients then being
/// attended are so to their end. `socket` names it in the log.
pub(crate) async fn attend_clients<Listener, Attending>(
    socket: &'static str,
    listener: Listener,
    max_clients: usize,
    attend: impl Fn(Listener::Stream) -> Attending,
) where
    Listener: Accept,
    Attending: Future<Output = ()> + Send + 'static,
{
    let clients = Arc::new(Semaphore::new(max_clients));
    let mut pause = FIRST_PAUSE;
    loop {
        let Ok(permit) = Arc::clone(&clients).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok(stream) => {
                pause = FIRST_PAUSE;
                let attending = attend(stream);
                tokio::spawn(async move {
                    attending.await;
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of descriptors, as a rule: some will be free in a moment.
                warn!(socket, %error, ?pause, "cannot accept a connection");
                tokio::time::sleep(pause).await;
                pause = longer(pause);
            }
        }
    }
}

fn longer(pause: Duration) -> Duration {
    pause.saturating_mul(2).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use tokio::sync::{Mutex, mpsc};

    use super::*;

    /// A directory of this test's own, removed at its end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("calidris-listen-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _removed = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_dead_predecessors_socket_is_replaced() {
        let scratch = Scratch::new("stale");
        let path = scratch.0.join("deeper").join("a.sock");
        drop(listen(&path).unwrap());
        assert!(path.exists(), "the dead listener's socket stays behind");
        let _listener = listen(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_living_agents_socket_is_left_alone() {
        let scratch = Scratch::new("alive");
        let path = scratch.0.join("a.sock");
        let _living = listen(&path).unwrap();
        assert!(matches!(listen(&path), Err(ListenError::InUse { .. })));
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let scratch = Scratch::new("file");
        let path = scratch.0.join("a.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(listen(&path), Err(ListenError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    /// Gives what it is told to; nothing more comes when that is over.
    struct Scripted(Mutex<mpsc::Receiver<io::Result<u8>>>);

    impl Accept for Scripted {
        type Stream = u8;

        async fn accept(&self) -> io::Result<u8> {
            match self.0.lock().await.recv().await {
                Some(given) => given,
                None => std::future::pending().await,
            }
        }
    }

    #[tokio::test]
    async fn errors_of_accept_do_not_end_it_and_no_more_clients_than_allowed_are_attended() {
        let (give, given) = mpsc::channel(8);
        for client in [
            Ok(1),
            Err(io::Error::from_raw_os_error(libc::EMFILE)),
            Err(io::Error::from_raw_os_error(libc::ECONNABORTED)),
            Ok(2),
            Ok(3),
        ] {
            give.send(client).await.unwrap();
        }
        let (come, mut came) = mpsc::channel(8);
        let leave = Arc::new(Semaphore::new(0));
        let clients_leave = Arc::clone(&leave);
        let server = tokio::spawn(attend_clients(
            "test",
            Scripted(Mutex::new(given)),
            2,
            move |client| {
                let (come, leave) = (come.clone(), Arc::clone(&clients_leave));
                async move {
                    come.send(client).await.unwrap();
                    leave.acquire().await.unwrap().forget();
                }
            },
        ));
        let mut attended = [came.recv().await.unwrap(), came.recv().await.unwrap()];
        attended.sort_unstable();
        assert_eq!(attended, [1, 2]);
        // The third one has not even been taken from the backlog.
        assert_eq!(give.max_capacity() - give.capacity(), 1);
        leave.add_permits(1);
        assert_eq!(came.recv().await.unwrap(), 3);
        server.abort();
    }

    #[test]
    fn pauses_double_up_to_a_second() {
        let pauses = std::iter::successors(Some(FIRST_PAUSE), |pause| Some(longer(*pause)));
        let millis: Vec<u128> = pauses.map(|pause| pause.as_millis()).take(9).collect();
        assert_eq!(millis, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
    }
}
