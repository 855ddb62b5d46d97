//! The plainest HTTP: one request, one answer, the connection's end.
//!
//! In: an address and a path. Out: status and body. It never follows, keeps or encrypts anything.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Asks a server for a path: status and body, or what went wrong.
pub async fn get(address: SocketAddr, path: &str) -> Result<(u16, String), String> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = ask.await.map_err(|error| error.to_string())?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    Ok((status.ok_or_else(|| format!("no HTTP: {answer}"))?, body.to_owned()))
}
