//! The conformance suite on real files, and what only SQLite can get wrong.

use tempfile::TempDir;

use super::*;
use crate::inbound_log::conformance::{Engine, suite};

suite!(File);

/// Rows of a segment: few, so that most of what the tests write is sealed.
const SEGMENT_ROWS: usize = 8;

/// A `logs.db` of its own.
struct File(TempDir);

impl File {
    fn path(&self) -> std::path::PathBuf {
        self.0.path().join(FILE_NAME)
    }

    async fn store(
        &self,
        supervisor: &Supervisor,
        failing: mpsc::Sender<FailingSubscription>,
    ) -> SqliteLogStore {
        SqliteLogStore::open_with(self.0.path(), supervisor, failing, SEGMENT_ROWS).await.unwrap()
    }
}

impl Engine for File {
    async fn fresh() -> Self {
        Self(TempDir::new().unwrap())
    }

    async fn open(
        &self,
        supervisor: &Supervisor,
        failing: mpsc::Sender<FailingSubscription>,
    ) -> Arc<dyn LogStore> {
        Arc::new(self.store(supervisor, failing).await)
    }

    /// What the files say now. The shared memory beside them is rebuilt.
    async fn crashed(&self) -> Self {
        let left = Self(TempDir::new().unwrap());
        for name in [FILE_NAME.to_owned(), format!("{FILE_NAME}-wal")] {
            std::fs::copy(self.0.path().join(&name), left.0.path().join(&name)).unwrap();
        }
        left
    }

    /// The positions are the last thing that a transaction writes.
    async fn fail_writes(&self, fail: bool) {
        let change = if fail {
            "CREATE TRIGGER fail BEFORE INSERT ON report_positions BEGIN SELECT RAISE(ABORT, 'as asked'); END"
        } else {
            "DROP TRIGGER fail"
        };
        let mut connection = schema::open_writer(&self.path()).await.unwrap();
        sqlx::query(change).execute(&mut connection).await.unwrap();
        sqlx::Connection::close(connection).await.unwrap();
    }
}

/// The log of a large data set answers by index: the plan of an instance's page, of an id and of attempts never scans.
#[tokio::test]
async fn plans_use_the_indexes() {
    let (file, stop) = (File::fresh().await, CancellationToken::new());
    let supervisor = Supervisor::new(stop.clone());
    let logs = file.store(&supervisor, mpsc::channel(1).0).await;
    let rows_of = format!(
        "SELECT logs.seq FROM {}'[1]'{} AND logs.tenant_id = 'a'",
        query::ROWS_OF,
        query::ROWS_OF_WHERE
    );
    for (sql, wanted) in [
        (rows_of.as_str(), "SEARCH logs USING INTEGER PRIMARY KEY (rowid=?)"),
        (
            instance_index::NEWEST_SEALED,
            "SEARCH log_instances USING PRIMARY KEY (segment=? AND instance_id=?)",
        ),
        (event_index::FIND_SEALED, "SEARCH log_event_ids USING PRIMARY KEY (segment=? AND key_first<?)"),
        (attempts::LATER_ATTEMPTS, "SEARCH attempts USING PRIMARY KEY (log_seq=? AND attempt_seq=?)"),
        (attempts::FIRST_OF, "SEARCH logs USING INTEGER PRIMARY KEY (rowid=?)"),
        (attempts::LATER_OF, "SEARCH attempts USING PRIMARY KEY (log_seq=?)"),
    ] {
        let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
        let plan: Vec<(i64, i64, i64, String)> =
            sqlx::query_as(explain).fetch_all(&logs.inner.readers).await.unwrap();
        let text: Vec<_> = plan.into_iter().map(|row| row.3).collect();
        assert!(text.iter().any(|line| line.contains(wanted)), "{text:?}");
        assert!(!text.iter().any(|line| line.contains("TEMP B-TREE")), "{text:?}");
    }
    stop.cancel();
    supervisor.wait(std::time::Duration::from_secs(30)).await.unwrap();
}
