//! Another process at the control plane's databases: Python, which has SQLite with it.

use std::{path::Path, process::Stdio};

use anyhow::{Context as _, ensure};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, Command},
};

use crate::{
    condition::{DEADLINE, Within as _},
    python::run,
};

const LOCK: &str = "
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
database.execute('BEGIN IMMEDIATE')
print('locked', flush=True)
sys.stdin.readline()
database.execute('ROLLBACK')
";
const EXECUTE: &str = "
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
for row in database.execute(sys.argv[2]):
    print(*row, sep='|')
database.close()
";

/// A process that is in the middle of writing a database; nobody else can meanwhile.
pub struct Lock {
    process: Child,
}

impl Lock {
    /// Begins to write.
    ///
    /// # Errors
    /// When somebody else is writing for long.
    pub async fn of(database: &Path) -> anyhow::Result<Self> {
        let mut process = Command::new("python3")
            .args(["-c", LOCK])
            .arg(database)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("start python3")?;
        let output = process.stdout.take().context("take the output of python3")?;
        let line = BufReader::new(output).lines().next_line().within(DEADLINE).await??;
        ensure!(line.as_deref() == Some("locked"), "lock `{}`: {line:?}", database.display());
        Ok(Self { process })
    }

    /// Stops, without having written anything.
    ///
    /// # Errors
    /// When the process does not end.
    pub async fn release(mut self) -> anyhow::Result<()> {
        let input = self.process.stdin.as_mut().context("take the input of python3")?;
        input.write_all(b"\n").await?;
        let ended = self.process.wait().within(DEADLINE).await??;
        ensure!(ended.success(), "python3 ended with {ended}");
        Ok(())
    }
}

/// Runs a statement; gives its rows, a line each, columns parted by `|`.
///
/// # Errors
/// When it fails.
pub async fn execute(database: &Path, statement: &str) -> anyhow::Result<String> {
    let database = database.as_os_str().to_str().context("name the database")?;
    run("python3", ["-c", EXECUTE, database, statement]).await
}
