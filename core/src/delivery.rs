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
    /// Given away by an agent: the report that hands it over waits for its ack. The agent alone knows this state.
    HandingOver {
        /// Whether it was held, not pending.
        was_held: bool,
    },
    /// Given away by an agent, and the control plane answers for it. The agent alone knows this state.
    HandedOver,
}

impl DeliveryState {
    /// Whether nothing more will happen by itself; of what was handed over: nothing on this agent.
    pub const fn is_settled(self) -> bool {
        !matches!(self, Self::Pending | Self::Held)
    }

    /// Whether it was given away and nobody has answered for it yet.
    pub const fn is_handing_over(self) -> bool {
        matches!(self, Self::HandingOver { .. })
    }

    /// Whether it was given away.
    pub const fn is_given_away(self) -> bool {
        matches!(self, Self::HandingOver { .. } | Self::HandedOver)
    }

    /// The state of an owed delivery once it is given away; any other as it is.
    #[must_use]
    pub const fn given_away(self) -> Self {
        match self {
            Self::Pending => Self::HandingOver { was_held: false },
            Self::Held => Self::HandingOver { was_held: true },
            other => other,
        }
    }

    /// As what a delivery that is being given away is owed; any other as it is.
    #[must_use]
    pub const fn owed(self) -> Self {
        match self {
            Self::HandingOver { was_held: false } => Self::Pending,
            Self::HandingOver { was_held: true } => Self::Held,
            other => other,
        }
    }

    /// To protobuf. What was handed over is still owed, so the log goes on showing it as pending or held.
    pub const fn to_proto(self) -> v1::DeliveryState {
        match self {
            Self::Pending | Self::HandingOver { was_held: false } | Self::HandedOver => {
                v1::DeliveryState::Pending
            }
            Self::Held | Self::HandingOver { was_held: true } => v1::DeliveryState::Held,
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

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [DeliveryState; 8] = [
        DeliveryState::Pending,
        DeliveryState::Held,
        DeliveryState::Delivered,
        DeliveryState::Exhausted,
        DeliveryState::Cancelled,
        DeliveryState::HandingOver { was_held: false },
        DeliveryState::HandingOver { was_held: true },
        DeliveryState::HandedOver,
    ];

    /// Only what is owed can be given away, and it comes back as what it was. Whoever asks for the log sees it as it
    /// was meanwhile.
    #[test]
    fn what_is_given_away_is_still_owed() {
        for state in ALL {
            let given = state.given_away();
            assert_eq!(given.is_handing_over() && !state.is_handing_over(), !state.is_settled(), "{state:?}");
            assert!(given.is_settled() && given.to_proto() == state.to_proto(), "{state:?}");
            if !state.is_settled() {
                assert_eq!(given.owed(), state);
            }
        }
        assert!(!DeliveryState::HandedOver.is_handing_over());
    }
}
