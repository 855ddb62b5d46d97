//! `remora inject` and `remora uninject` as people pipe them.

use std::io::Write;
use std::process::Stdio;

use serde_json::Value;

use crate::folder::Folder;
use crate::sidecar::{remora, run, text};

const APP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../demo/app.yaml");

/// What a command makes of its standard input: output, report, exit code.
fn pipe(arguments: &[&str], input: &str) -> (String, String, Option<i32>) {
    let mut command = remora(arguments);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (text(&output.stdout), text(&output.stderr), output.status.code())
}

#[test]
fn what_is_injected_is_uninjected_byte_for_byte() {
    let (injected, report, code) = pipe(&["inject"], &std::fs::read_to_string(APP).unwrap());
    assert_eq!((&*report, code), ("Deployment shop/shopper: injected\n", Some(0)));
    assert!(injected.contains("- capture\n") && injected.contains("# it keeps its connections for hours"));
    let (twice, report, code) = pipe(&["inject", "-f", "-"], &injected);
    assert_eq!((twice, code), (injected.clone(), Some(0)));
    assert_eq!(report, "Deployment shop/shopper: skipped: it has a sidecar already\n");
    let (bare, report, code) = pipe(&["uninject"], &injected);
    assert_eq!((&*report, code), ("Deployment shop/shopper: uninjected\n", Some(0)));
    assert_eq!(bare, std::fs::read_to_string(APP).unwrap());
}

#[test]
fn it_is_printed_as_json_for_who_wants_that() {
    let output = run(&["inject", "-f", APP, "-o", "json", "--image", "registry.example/remora:7"]);
    let deployment: Value = serde_json::from_slice(&output.stdout).unwrap();
    let sidecar = &deployment["spec"]["template"]["spec"]["initContainers"][1];
    assert_eq!(sidecar["image"], "registry.example/remora:7");
}

#[test]
fn a_mistake_is_told_and_takes_nothing_else_away() {
    let app = std::fs::read_to_string(APP).unwrap();
    let (changed, report, code) = pipe(&["inject"], &format!("kind: [\n---\n{app}"));
    assert_eq!(code, Some(1));
    assert!(
        report.contains("document 1: not changed") && report.contains("shop/shopper: injected"),
        "{report}"
    );
    assert!(report.ends_with("they are passed on as they were\n"), "{report}");
    assert!(changed.starts_with("kind: [\n---\n") && changed.contains("remora-capture"));
}

#[test]
fn what_cannot_be_read_is_named_with_the_next_step() {
    let folder = Folder::new();
    let missing = folder.path("missing.yaml");
    let output = run(&["inject", "-f", &missing]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains(&missing) && said.contains("name a manifest with -f"), "{said}");
    for (flag, value) in [("--services", "10.96.0.0/33"), ("--sidecar-source", "somewhere")] {
        let output = run(&["inject", "-f", APP, flag, value]);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).starts_with(&format!("remora: {flag}")));
    }
}

#[test]
fn a_webhook_without_a_certificate_that_works_does_not_start() {
    let folder = Folder::new();
    folder.put_web(&["127.0.0.2"], 80);
    let certificate = folder.path("certificate");
    std::fs::create_dir(&certificate).unwrap();
    let source = folder.source();
    let hub = |more: &[&str]| {
        let arguments = ["hub", "--source", &source, "--feed", "127.0.0.1:0", "--webhook", "127.0.0.1:0"];
        let output = run(&[&arguments, more].concat());
        (output.status.code(), text(&output.stderr))
    };
    let (code, said) = hub(&[]);
    assert!(code == Some(2) && said.contains("no certificate to show; name a folder"), "{said}");
    let (code, said) = hub(&["--certificate", "secret:"]);
    assert!(code == Some(2) && said.contains("write it as secret:NAME"), "{said}");
    let (code, said) = hub(&["--certificate", "secret:hub-tls"]);
    assert!(code == Some(2) && said.contains("with --certificate-name, such as"), "{said}");
    for (name, content) in [("tls.crt", "nothing"), ("tls.key", "nothing either")] {
        let (code, said) = hub(&["--certificate", &certificate]);
        assert!(
            code == Some(1) && said.contains(&certificate) && said.contains("PEM, as a Secret"),
            "{said}"
        );
        std::fs::write(format!("{certificate}/{name}"), content).unwrap();
    }
}
