//! Metrics in the text format of Prometheus (version 0.0.4), over HTTP: `GET /metrics`. Off unless configured.
//!
//! Invariants: what is shown is counted elsewhere anyway; a scrape reads it and changes nothing. At most eight clients at a
//! time, more wait in the kernel's backlog; one that does not ask or does not read is dropped after five seconds, one
//! whose request is longer than 8 KiB is refused.

mod exposition;
mod histogram;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tracing::debug;

use crate::listen::attend_clients;

pub use exposition::{Exposition, of_status};
pub use histogram::Histogram;

/// Clients served at a time.
const MAX_CLIENTS: usize = 8;
/// How long a client may take to ask and to read its answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest request, in bytes.
const MAX_REQUEST: usize = 8 * 1024;

/// Serves what `text` gives until the task is dropped.
pub async fn serve<Text, Answer>(listener: TcpListener, text: Text)
where
    Text: Fn() -> Answer + Send + Sync + 'static,
    Answer: Future<Output = String> + Send,
{
    let text = Arc::new(text);
    attend_clients("metrics", listener, MAX_CLIENTS, |stream| {
        let text = Arc::clone(&text);
        async move {
            let answered = tokio::time::timeout(CLIENT_TIMEOUT, answer(stream, &*text)).await;
            if let Err(error) = answered.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                debug!(%error, "metrics: the client did not take its answer");
            }
        }
    })
    .await;
}

async fn answer<Answer>(mut stream: TcpStream, text: &impl Fn() -> Answer) -> io::Result<()>
where
    Answer: Future<Output = String>,
{
    let request = request_of(&mut stream).await?;
    let (status, kind, body) = match requested(&request) {
        Some(("GET", "/metrics")) => ("200 OK", "text/plain; version=0.0.4", text().await),
        Some(("GET", _)) => (
            "404 Not Found",
            "text/plain",
            "only /metrics is here\n".to_owned(),
        ),
        Some(_) => (
            "405 Method Not Allowed",
            "text/plain",
            "only GET is answered\n".to_owned(),
        ),
        None => (
            "400 Bad Request",
            "text/plain",
            "not a request of HTTP/1\n".to_owned(),
        ),
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}; charset=utf-8\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

/// The request up to its empty line, or as much of it as fits.
async fn request_of(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut request = Vec::new();
    let mut part = [0; 1024];
    while request.len() < MAX_REQUEST && !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let length = stream.read(&mut part).await?;
        if length == 0 {
            break;
        }
        request.extend_from_slice(part.get(..length).unwrap_or_default());
    }
    Ok(request)
}

/// Method and path of a request line, without the query.
fn requested(request: &[u8]) -> Option<(&str, &str)> {
    let line = request.split(|byte| *byte == b'\r').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let path = target.split('?').next()?;
    (version.starts_with("HTTP/1.") && words.next().is_none()).then_some((method, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_requested() {
        assert_eq!(
            requested(b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n"),
            Some(("GET", "/metrics"))
        );
        assert_eq!(requested(b"POST / HTTP/1.0\r\n\r\n"), Some(("POST", "/")));
        for nonsense in [
            &b""[..],
            b"GET",
            b"GET /metrics",
            b"\xff\xff HTTP/1.1",
            b"GET / FTP/1 x",
        ] {
            assert_eq!(requested(nonsense), None, "{nonsense:?}");
        }
    }

    #[tokio::test]
    async fn a_scrape_is_answered_and_anything_else_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, || async { "calidris_x 1\n".to_owned() }));
        for (request, expected) in [
            ("GET /metrics HTTP/1.1\r\n\r\n", "calidris_x 1\n"),
            ("GET / HTTP/1.1\r\n\r\n", "404"),
            ("PUT /metrics HTTP/1.1\r\n\r\n", "405"),
            ("hello\r\n\r\n", "400"),
        ] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.contains(expected), "{request}: {answer}");
        }
        server.abort();
    }
}
