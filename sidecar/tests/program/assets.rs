//! The files of the filter, beside the feed: whole, as they are on disk at that moment, and nothing else.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;

use crate::exposition;
use crate::folder::Folder;
use crate::sidecar::{PATIENCE, Sidecar, run, text, until};

/// Larger than what is on its way at once.
const LARGE: usize = 5 << 20;

/// Bytes that differ from place to place.
fn module(length: usize) -> Vec<u8> {
    (0..length as u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).take(length).collect()
}

/// A hub that serves the files in a folder of `folder`, which is returned.
fn hub(folder: &Folder) -> (Sidecar, SocketAddr, std::path::PathBuf) {
    let assets = std::path::PathBuf::from(folder.path("assets"));
    std::fs::create_dir_all(&assets).unwrap();
    folder.put_web(&["127.0.0.2"], 80);
    let hub = Sidecar::hub(&[
        "--source",
        &folder.source(),
        "--feed",
        "127.0.0.1:0",
        "--assets",
        assets.to_str().unwrap(),
    ]);
    let address = hub.feed.as_ref().unwrap().strip_prefix("http://").unwrap().parse().unwrap();
    (hub, address, assets)
}

/// A request by HTTP/1.1: head and body.
fn ask(address: SocketAddr, method: &str, path: &str, more: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: hub.example\r\nConnection: close\r\n{more}\r\n")
        .unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    let body = answer.split_off(end);
    (text(&answer), body)
}

fn header<'h>(head: &'h str, name: &str) -> &'h str {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).unwrap_or_default()
}

/// What coreutils say.
fn sha256(path: &std::path::Path) -> String {
    let output = std::process::Command::new("sha256sum").arg(path).output().unwrap();
    text(&output.stdout).split(' ').next().unwrap().to_owned()
}

#[test]
fn the_module_is_served_whole_with_its_sha256_as_it_is_on_disk() {
    let folder = Folder::new();
    let (_hub, at, assets) = hub(&folder);
    let path = assets.join("filter.wasm");
    for bytes in [module(LARGE), module(100_001), Vec::new()] {
        // In one step, as an installation does.
        std::fs::write(assets.join("next"), &bytes).unwrap();
        std::fs::rename(assets.join("next"), &path).unwrap();
        let (head, body) = ask(at, "GET", "/filter.wasm", "");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(body == bytes, "{} of {} bytes, or others", body.len(), bytes.len());
        assert_eq!(header(&head, "content-type"), "application/wasm");
        assert_eq!(header(&head, "content-length"), bytes.len().to_string());
        let sum = sha256(&path);
        assert_eq!(header(&head, "etag"), format!("\"{sum}\""));
        assert_eq!(text(&ask(at, "GET", "/filter.wasm.sha256", "").1), format!("{sum}\n"));
        let (head, body) = ask(at, "HEAD", "/filter.wasm", "");
        assert_eq!((header(&head, "content-length"), body.len()), (&*bytes.len().to_string(), 0));
        let (head, body) = ask(at, "GET", "/filter.wasm", &format!("If-None-Match: \"{sum}\"\r\n"));
        assert!(head.starts_with("HTTP/1.1 304 ") && body.is_empty(), "{head}");
    }
    std::fs::write(assets.join("remora.js"), "export {}").unwrap();
    let (head, body) = ask(at, "GET", "/remora.js", "");
    assert_eq!((header(&head, "content-type"), text(&body)), ("text/javascript", "export {}".to_owned()));
}

#[test]
fn it_is_served_by_http_2_too() {
    use http_body_util::BodyExt;
    let folder = Folder::new();
    let (_hub, at, assets) = hub(&folder);
    std::fs::write(assets.join("filter.wasm"), module(LARGE)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let body = runtime.block_on(async {
        let io = hyper_util::rt::TokioIo::new(tokio::net::TcpStream::connect(at).await.unwrap());
        let executor = hyper_util::rt::TokioExecutor::new();
        let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
        tokio::spawn(connection);
        let request = hyper::Request::get("http://hub/filter.wasm")
            .body(http_body_util::Empty::<bytes::Bytes>::new())
            .unwrap();
        sender.send_request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes()
    });
    assert!(body == module(LARGE), "{} bytes, or others", body.len());
}

#[test]
fn nothing_else_is_served_and_what_is_missing_is_said() {
    let folder = Folder::new();
    let (hub, at, assets) = hub(&folder);
    hub.wait_for_log("there is no module to serve; filter/build makes it");
    let says = |path: &str| {
        let (head, body) = ask(at, "GET", path, "");
        (head.split(' ').nth(1).unwrap().to_owned(), text(&body))
    };
    let missing =
        "cannot read filter.wasm in the folder of --assets: No such file or directory (os error 2)\n";
    assert_eq!(says("/filter.wasm"), ("404".into(), missing.into()));
    assert_eq!(says("/filter.wasm.sha256"), ("404".into(), missing.into()));
    std::fs::create_dir(assets.join("filter.wasm")).unwrap();
    let (status, body) = says("/filter.wasm");
    assert!(status == "404" && body.contains("it is no file"), "{body}");
    std::fs::write(folder.path("secret"), "secret").unwrap();
    std::fs::write(assets.join("other.wasm"), "secret").unwrap();
    symlink(folder.path("secret"), assets.join("remora_bg.wasm.map")).unwrap();
    for path in [
        "/other.wasm",
        "/remora_bg.wasm.map",
        "/../secret",
        "/filter.wasm/../other.wasm",
        "/%2e%2e/secret",
        "/..%2fsecret",
        "//filter.wasm",
    ] {
        let (status, body) = says(path);
        assert!(["403", "404"].contains(&&*status) && !body.contains("secret"), "{path}: {status} {body}");
    }
    assert!(ask(at, "POST", "/filter.wasm", "Content-Length: 0\r\n").0.starts_with("HTTP/1.1 405 "));
    let without = Sidecar::hub(&["--source", &folder.source(), "--feed", "127.0.0.1:0"]);
    let at = without.feed.as_ref().unwrap().strip_prefix("http://").unwrap().parse().unwrap();
    let (head, body) = ask(at, "GET", "/filter.wasm", "");
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    assert_eq!(text(&body), "no files are served here; start this process with --assets FOLDER\n");
}

#[test]
fn a_folder_that_is_missing_is_named_before_anything_is_served() {
    let folder = Folder::new();
    folder.put_web(&["127.0.0.2"], 80);
    let nowhere = folder.path("nowhere");
    let output = run(&["hub", "--source", &folder.source(), "--feed", "127.0.0.1:0", "--assets", &nowhere]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), String::new()));
    let expected = format!(
        "cannot serve files from {nowhere} for --assets: No such file or directory (os error 2); name the folder in \
         which filter.wasm is, which filter/build makes\n"
    );
    assert!(text(&output.stderr).ends_with(&expected), "{}", text(&output.stderr));
    let output = run(&["sidecar", "--source", &folder.source(), "--assets", &folder.path("served")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("say where with --feed"), "{}", text(&output.stderr));
}

#[test]
fn readers_who_stop_reading_cost_little() {
    const READERS: usize = 40;
    let folder = Folder::new();
    let (hub, at, assets) = hub(&folder);
    // Nothing but holes: it takes no place on the disk.
    std::fs::File::create(assets.join("filter.wasm")).unwrap().set_len(16 << 20).unwrap();
    let memory = || exposition::read(&hub.health("/metrics").1)["process_resident_memory_bytes"];
    let before = memory();
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let mut stream = TcpStream::connect(at).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET /filter.wasm HTTP/1.1\r\nHost: hub\r\n\r\n").unwrap();
        stream.read_exact(&mut [0; 1024]).unwrap();
        readers.push(stream);
    }
    let more = memory() - before;
    assert!(more < 16e6, "{READERS} readers of 16 MB cost {:.1} MB", more / 1e6);
    // Who reads is served meanwhile, and their places come back when they leave.
    std::fs::write(assets.join("next"), "small").unwrap();
    std::fs::rename(assets.join("next"), assets.join("filter.wasm")).unwrap();
    assert_eq!(ask(at, "GET", "/filter.wasm", "").1, b"small");
    drop(readers);
    until("all places are free", || {
        let mut streams: Vec<_> = (0..READERS + 10).map(|_| TcpStream::connect(at).unwrap()).collect();
        for stream in &mut streams {
            // Who is refused may be so before it has asked.
            write!(stream, "GET /filter.wasm HTTP/1.1\r\nHost: hub\r\n\r\n")
                .map_err(|error| error.to_string())?;
        }
        for mut stream in streams {
            let mut head = [0; 12];
            stream.read_exact(&mut head).map_err(|error| error.to_string())?;
            if &head != b"HTTP/1.1 200" {
                return Err(text(&head));
            }
        }
        Ok(())
    });
}
