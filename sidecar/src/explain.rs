//! `remora explain`: what becomes of a connection, step by step. Asks the running sidecar, whose connections and
//! failures count, or looks at a source by itself.

use selection::story::{Moment, Story};
use watcher::Scope;

use crate::arguments::OutputFormat;
use crate::config::{Ask, Explain};
use crate::{ask, look};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody was there to ask.
    #[error(transparent)]
    Ask(#[from] ask::Error),
    /// The source gave nothing.
    #[error(transparent)]
    Look(#[from] look::Error),
    /// It cannot be printed.
    #[error("cannot print the answer: {0}; try -o text")]
    Print(#[from] serde_json::Error),
}

/// Runs the command: the answer to print.
///
/// # Errors
/// If there is no answer.
pub async fn run(config: Explain) -> Result<String, Error> {
    let connection = config.question;
    match config.ask {
        Ask::Sidecar(admin) => {
            let (address, protocol) = (connection.address.to_string(), connection.protocol.to_string());
            let client = connection.client.map(|client| client.to_string());
            let mut query = vec![("address", &*address), ("protocol", &*protocol)];
            query.extend(client.iter().map(|client| ("client", &**client)));
            query.extend((!connection.inside).then_some(("outside", "")));
            Ok(ask::ask(admin, "/v1/explain", &query, config.output).await?)
        }
        Ask::Source(source, here) => {
            let watch = look::start(source, Scope::All, here).await?;
            let story = Story::tell(&watch.tables.load(), &connection, Moment::NONE, None);
            Ok(render(&story, config.output)?)
        }
    }
}

/// The story as it was asked for.
///
/// # Errors
/// Never, as long as it fits into memory.
pub fn render(story: &Story, output: OutputFormat) -> Result<String, serde_json::Error> {
    match output {
        OutputFormat::Text => Ok(story.text()),
        OutputFormat::Json => serde_json::to_string_pretty(story).map(|text| text + "\n"),
    }
}
