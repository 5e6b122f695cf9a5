//! Security events as clients and webhooks see them.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::domain::security_event::{SecurityEventKind, Severity};
use crate::wire::moment;

/// What somebody should hear of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SecurityEvent {
    /// Also the `webhook-id`.
    pub id: Uuid,
    pub kind: SecurityEventKind,
    pub severity: Severity,
    /// Kind and id of what it is about, such as `run:ID` or `address:192.0.2.1`.
    pub subject: String,
    /// Ids, counts and names; what is not printed is spelled out in them.
    #[schema(value_type = Object)]
    pub details: serde_json::Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_id: Option<Uuid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<Uuid>,
    pub at: DateTime<Utc>,
}

/// How far the telling of one receiver is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// It is tried, or will be.
    Pending,
    /// The receiver answered with a 2xx.
    Delivered,
    /// Nothing more is tried.
    GivenUp,
}

impl DeliveryState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::GivenUp => "given_up",
        }
    }
}

/// The telling of one receiver.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Delivery {
    /// Its name in the notifier's file.
    pub hook: String,
    pub state: DeliveryState,
    /// Tries that were begun.
    pub attempts: u32,
    /// When the last one was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_at: Option<DateTime<Utc>>,
    /// HTTP status of the last answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_status: Option<u16>,
    /// Why the last try failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Not before; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try_at: Option<DateTime<Utc>>,
}

/// An event, and who was told of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ListedSecurityEvent {
    #[serde(flatten)]
    pub event: SecurityEvent,
    pub deliveries: Vec<Delivery>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SecurityEventPage {
    /// The latest first.
    pub events: Vec<ListedSecurityEvent>,
    /// For the next page; absent: these were the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// Which events.
#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct SecurityEventFilter {
    /// Such as `budget.exhausted`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<SecurityEventKind>,
    /// This one or a higher one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub severity: Option<Severity>,
    /// From this time on.
    #[serde(default, deserialize_with = "moment::read", skip_serializing_if = "Option::is_none")]
    pub since: Option<DateTime<Utc>>,
    /// Of this task and its runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<Uuid>,
    /// `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(maximum = 9_223_372_036_854_775_807_u64)]
    pub cursor: Option<u64>,
    /// 1 to 500; 100 if it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(minimum = 1, maximum = 500)]
    pub limit: Option<u32>,
}

/// What a webhook gets, in the form that Standard Webhooks asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Webhook {
    /// The event's kind, or `webhook.test`.
    #[serde(rename = "type")]
    pub kind: String,
    /// When it happened.
    pub timestamp: DateTime<Utc>,
    pub data: serde_json::Value,
}
