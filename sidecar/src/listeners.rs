//! Tells in the log when a listener's Service port is missing from the table, and when it is there again.

use selection::{Family, Table};
use watcher::Watch;

use crate::tcp::Listen;

/// Runs as long as the watch does.
pub async fn tell(watch: Watch, listens: Vec<Listen>) {
    let mut missing = vec![false; listens.len()];
    let mut version = 0;
    loop {
        let table = watch.tables.reaches(|table| table.version() > version).await;
        version = table.version();
        for (listen, was_missing) in listens.iter().zip(&mut missing) {
            let is_missing = is_missing(&table, listen);
            if is_missing && !*was_missing {
                let why = why_missing(&watch, listen).await;
                tracing::warn!(address = %listen.address, "{why}; its connections are reset until then");
            } else if *was_missing && !is_missing {
                tracing::info!(address = %listen.address, "{} has port {}: serving", listen.service, listen.port);
            }
            *was_missing = is_missing;
        }
    }
}

fn is_missing(table: &Table, listen: &Listen) -> bool {
    table.port(&listen.service, &listen.port, Family::of(&listen.address.ip())).is_none()
}

/// What is wrong, and what to do about it.
async fn why_missing(watch: &Watch, listen: &Listen) -> String {
    let Listen { service, port, .. } = listen;
    let Some(inspection) = watch.inspect(service.clone()).await else {
        return format!("there is no Service {service}: create it, or correct --listen");
    };
    if let Some(skip) = inspection.skipped {
        return format!("Service {service} is not served ({skip}): change it, or remove the --listen");
    }
    let mut ports: Vec<String> =
        inspection.ports.iter().map(|port| format!("{} {}", port.row.port, port.row.service_port)).collect();
    ports.dedup();
    format!("Service {service} has no port {port}, only {}: correct --listen", ports.join(", "))
}
