//! Runs the rows of a table at the same time and reports every row that fails.

use std::future::Future;

use tokio::task::JoinSet;

/// Rows under way.
#[derive(Default)]
pub struct Table {
    rows: JoinSet<()>,
    names: Vec<(tokio::task::Id, String)>,
}

impl Table {
    /// Starts a row.
    pub fn row(&mut self, name: &str, row: impl Future<Output = ()> + Send + 'static) {
        let handle = self.rows.spawn(row);
        self.names.push((handle.id(), name.to_owned()));
    }

    /// Waits for all rows; fails the test if any of them failed.
    pub async fn finish(mut self) {
        let mut failed = Vec::new();
        while let Some(result) = self.rows.join_next().await {
            if let Err(error) = result {
                let name = self.names.iter().find(|(id, _)| *id == error.id()).map_or("?", |(_, name)| name);
                failed.push(format!("{name}: {}", reason(error)));
            }
        }
        assert!(failed.is_empty(), "{} of {} rows failed:\n{}", failed.len(), self.names.len(), failed.join("\n"));
    }
}

fn reason(error: tokio::task::JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => match panic.downcast::<String>() {
            Ok(text) => *text,
            Err(panic) => panic.downcast::<&str>().map_or_else(|_| "a panic".to_owned(), |text| (*text).to_owned()),
        },
        Err(error) => error.to_string(),
    }
}
