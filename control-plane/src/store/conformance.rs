//! What every engine has to do, as tests: the promises of [`super::engine`] and of the traits of the tables. A second
//! engine makes a [`Factory`] and adds one line at the end of this file.

use super::Store;

pub(crate) mod fixtures;
mod transactions;
mod compare_and_set;
mod versions;
mod following;
mod rules;
mod requests;
mod opt_outs;
mod pages;
mod queue;
mod audit;
mod tenancy;
mod agents;
mod keys;
mod damage;
mod durability;

/// A database for one test, which nobody else uses.
pub(super) trait Factory {
    /// An empty database, not opened yet.
    async fn fresh() -> Self;

    /// Opens the database, with everything that earlier stores have committed to it.
    async fn open(&self) -> Store;
}

/// A SQLite file in a directory of its own.
pub(super) struct SqliteDirectory(tempfile::TempDir);

impl Factory for SqliteDirectory {
    async fn fresh() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    async fn open(&self) -> Store {
        Store::open(self.0.path()).await.unwrap()
    }
}

macro_rules! tests {
    ($factory:ident; $($group:ident: $($name:ident),+;)+) => {
        $($(
            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $name() {
                super::$group::$name(&<super::$factory as super::Factory>::fresh().await).await;
            }
        )+)+
    };
}

/// Every test of the suite, on one engine. One that is missing here is unused code, which clippy does not let pass.
macro_rules! suite {
    ($engine:ident, $factory:ident) => {
        mod $engine {
            tests! { $factory;
                transactions: dropped_transactions_change_nothing, refused_statements_change_nothing,
                    half_transactions_are_not_seen, transactions_see_what_they_wrote, writers_take_turns,
                    commits_are_told_of, commits_go_on_without_their_caller, writing_is_tried;
                compare_and_set: one_writer_wins, stale_is_told_apart_from_absent, etags_are_never_used_again;
                versions: versions_have_no_gap, versions_are_watched, changes_are_in_their_order,
                    changes_are_one_state, routes_go_along_with_their_instances;
                following: deltas_make_the_snapshot, followers_miss_nothing;
                rules: numbers_are_unique_on_a_route, references_are_kept, callback_tokens_are_unique;
                requests: repeats_get_the_first_answer, concurrent_repeats_are_answered_once;
                opt_outs: log_is_only_added_to, repeats_change_nothing, order_does_not_matter,
                    opt_outs_are_no_configuration, dropped_decisions_leave_no_trace, keys_are_joined_and_kept;
                pages: instances_page_under_writes, inbound_routes_page_under_writes,
                    webhook_subscriptions_page_under_writes, opt_outs_page_under_writes,
                    tenants_page_under_writes, api_keys_page_under_writes, agents_page_under_writes,
                    opt_out_log_pages_under_writes;
                queue: work_is_kept_in_order_until_deleted, work_is_queued_once_by_id, places_are_never_given_again,
                    work_goes_to_its_regions, work_is_of_tenants, deliveries_follow_their_instance;
                audit: entries_come_with_their_change, audit_filters_narrow_the_list, audit_pages_under_writes;
                tenancy: tenants_see_only_their_own, ids_stay_their_tenants, deleted_tenants_are_gone;
                agents: join_tokens_are_used_once, credentials_name_their_agent, revocation_is_final,
                    damages_are_kept_once, drains_and_the_fleet_are_counted, uses_of_keys_are_noted;
                keys: keys_keep_their_order, renewal_is_noted_once, sealed_columns_are_replaced_alone,
                    damaged_rows_show_what_is_known;
                damage: instances_are_listed_around_damage, tenants_and_policies_are_listed_around_damage,
                    damaged_keys_open_nothing, opt_outs_survive_damage, every_row_is_checked;
                durability: everything_survives_a_restart, epochs_name_one_database;
            }
        }
    };
}

suite!(sqlite, SqliteDirectory);
