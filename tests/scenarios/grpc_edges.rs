//! Callers that ask too much, read nothing, hang up or go dead harm nobody else.

mod age;
mod flood;
mod lines;
mod limits;
