//! Discovery services as files: what a control plane would answer, where an Envoy without one reads it.
//!
//! In: resources. Out: a file for each, and configurations that name these files in the place of services.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

/// One resource as a discovery service would answer, in a file.
pub(crate) fn write(folder: &Path, name: &str, message: &str, mut resource: Value) {
    resource["@type"] = format!("type.googleapis.com/{message}").into();
    let answer = json!({"version_info": "1", "resources": [resource]});
    fs::write(file_of(folder, name), answer.to_string()).expect("the folder of the world");
}

fn file_of(folder: &Path, name: &str) -> PathBuf {
    let name: String =
        name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).collect();
    folder.join(format!("{name}.xds"))
}

/// Puts a file in the place of every discovery service.
pub(crate) fn from_files(value: &mut Value, folder: &Path) {
    let fields = match value {
        Value::Array(values) => return values.iter_mut().for_each(|value| from_files(value, folder)),
        Value::Object(fields) => fields,
        _ => return,
    };
    let text = |fields: &Map<String, Value>, field: &str| {
        fields.get(field).and_then(Value::as_str).map(ToOwned::to_owned)
    };
    let source = |name: &str| json!({"path_config_source": {"path": file_of(folder, name)}});
    let name = text(fields, "name");
    if let Some(name) = text(fields, "route_config_name") {
        fields.insert("config_source".into(), source(&name));
    } else if let (Some(name), true) = (&name, fields.contains_key("sds_config")) {
        fields.insert("sds_config".into(), source(name));
    } else if let (Some(name), Some(discovery)) = (&name, fields.get_mut("config_discovery")) {
        discovery["config_source"] = source(name);
    } else if let (Some(name), Some(discovery)) = (&name, fields.get_mut("eds_cluster_config")) {
        let service = discovery["service_name"].as_str().unwrap_or(name).to_owned();
        discovery["eds_config"] = source(&service);
    }
    fields.values_mut().for_each(|value| from_files(value, folder));
}
