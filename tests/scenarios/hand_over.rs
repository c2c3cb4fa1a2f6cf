//! What a draining agent cannot deliver goes to another agent of its region, by way of the control plane, and goes on
//! there where it stood: nothing is lost, nothing stays owed, and the customer sees one delivery.

mod fleet;
mod drained;
mod waiting;
mod crashes;
mod who;
mod earlier;
