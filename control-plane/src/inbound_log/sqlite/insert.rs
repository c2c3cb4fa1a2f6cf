//! Many rows per statement: sqlx costs about 20 µs a statement, more than SQLite needs for a row.

use std::sync::Arc;

use sqlx::{
    Arguments as _, AssertSqlSafe, Encode, Sqlite, SqliteConnection, Type, error::BoxDynError,
    sqlite::SqliteArguments,
};

/// Rows of the prepared statements, largest first. A group is cut into them, so that only a few statements
/// per table are ever compiled.
const STATEMENT_ROWS: [usize; 8] = [256, 128, 64, 32, 16, 8, 4, 1];

/// Inserts rows of one table.
pub(super) struct RowInsert {
    statements: [Arc<str>; STATEMENT_ROWS.len()],
    columns: usize,
}

impl RowInsert {
    /// `into` is what comes before `VALUES`, `conflict` what comes after the rows.
    pub(super) fn new(into: &str, columns: usize, conflict: &str) -> Self {
        let row = format!("({})", vec!["?"; columns].join(","));
        let statements = STATEMENT_ROWS
            .map(|rows| format!("{into} VALUES {} {conflict}", vec![row.as_str(); rows].join(",")).into());
        Self { statements, columns }
    }

    /// Inserts `rows`; `bind` binds the columns of one of them.
    pub(super) async fn run<T>(
        &self,
        connection: &mut SqliteConnection,
        rows: Vec<T>,
        bind: impl Fn(T, &mut Row<'_>) -> Result<(), BoxDynError>,
    ) -> Result<(), sqlx::Error> {
        let mut rows = rows.into_iter();
        for (count, statement) in STATEMENT_ROWS.into_iter().zip(&self.statements) {
            while rows.len() >= count {
                let mut arguments = SqliteArguments::default();
                arguments.reserve(count * self.columns, 0);
                for row in rows.by_ref().take(count) {
                    bind(row, &mut Row(&mut arguments)).map_err(sqlx::Error::Encode)?;
                }
                let statement = AssertSqlSafe(Arc::clone(statement));
                sqlx::query_with::<Sqlite, _>(statement, arguments).execute(&mut *connection).await?;
            }
        }
        Ok(())
    }
}

/// Takes the columns of a row.
pub(super) struct Row<'a>(&'a mut SqliteArguments);

impl Row<'_> {
    /// Binds the next column. What is owned is not copied again.
    pub(super) fn bind<'v, V: Encode<'v, Sqlite> + Type<Sqlite> + 'v>(
        &mut self,
        value: V,
    ) -> Result<(), BoxDynError> {
        self.0.add(value)
    }
}
