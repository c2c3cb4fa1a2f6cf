//! Delivery states and the legal moves between them.

use gateway_proto::v1;

/// Where one delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeliveryState {
    /// Owed; an attempt is due or running.
    Pending,
    /// Owed, but its webhook subscription is paused.
    Held,
    /// The destination answered 2xx.
    Delivered,
    /// Every attempt of the schedule failed.
    Exhausted,
    /// The webhook subscription was deleted.
    Cancelled,
}

impl DeliveryState {
    /// Whether nothing more will happen by itself.
    pub const fn is_settled(self) -> bool {
        matches!(self, Self::Delivered | Self::Exhausted | Self::Cancelled)
    }

    /// To protobuf.
    pub const fn to_proto(self) -> v1::DeliveryState {
        match self {
            Self::Pending => v1::DeliveryState::Pending,
            Self::Held => v1::DeliveryState::Held,
            Self::Delivered => v1::DeliveryState::Delivered,
            Self::Exhausted => v1::DeliveryState::Exhausted,
            Self::Cancelled => v1::DeliveryState::Cancelled,
        }
    }

    /// From protobuf; unspecified and unknown values are pending, so that nothing is lost.
    pub const fn from_proto(state: v1::DeliveryState) -> Self {
        match state {
            v1::DeliveryState::Delivered => Self::Delivered,
            v1::DeliveryState::Exhausted => Self::Exhausted,
            v1::DeliveryState::Held => Self::Held,
            v1::DeliveryState::Cancelled => Self::Cancelled,
            v1::DeliveryState::Pending | v1::DeliveryState::Unspecified => Self::Pending,
        }
    }
}
