//! What changed from one JSON value to the next, as JSON; pure.
//!
//! A delta is the new value itself, or an object that says more:
//!
//! | delta | means |
//! |---|---|
//! | `{"=": V}` | the value is V, which is an object |
//! | `{"~": {K: delta, …}, "-": [K, …]}` | an object in which these keys changed or came, and those went; either may be missing |
//! | `{"@": [[I, delta], …]}` | an array of as many elements as before, of which these changed |

use std::mem;

use serde_json::{Map, Value, json};

/// Why a delta does not apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DeltaError {
    #[error("changed keys of what is no object")]
    NotAnObject,
    #[error("changed elements of what is no array, or not as long")]
    NotAnArray,
    #[error("an object that is no delta")]
    NoDelta,
    #[error("a field went that every snapshot has")]
    Needed,
    #[error("no such bucket")]
    NoBucket,
    #[error("a listener with another one's name")]
    SameName,
}

/// From `old` to `new`; `None` when they are equal.
pub(super) fn diff(old: &Value, new: &Value) -> Option<Value> {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => diff_objects(old, new),
        (_, Value::Object(_)) => Some(json!({ "=": new })),
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            let pairs = old.iter().zip(new).enumerate();
            let changed = pairs.filter_map(|(at, (old, new))| Some(json!([at, diff(old, new)?])));
            let changed: Vec<Value> = changed.collect();
            (!changed.is_empty()).then(|| json!({ "@": changed }))
        }
        (old, new) => (old != new).then(|| new.clone()),
    }
}

fn diff_objects(old: &Map<String, Value>, new: &Map<String, Value>) -> Option<Value> {
    let mut changed = Map::new();
    for (key, new) in new {
        let delta = match old.get(key) {
            Some(old) => diff(old, new),
            None if new.is_object() => Some(json!({ "=": new })),
            None => Some(new.clone()),
        };
        changed.extend(delta.map(|delta| (key.clone(), delta)));
    }
    let gone: Vec<_> = old.keys().filter(|key| !new.contains_key(*key)).collect();
    let mut delta = Map::new();
    if !gone.is_empty() {
        delta.insert("-".into(), json!(gone));
    }
    if !changed.is_empty() {
        delta.insert("~".into(), Value::Object(changed));
    }
    (!delta.is_empty()).then_some(Value::Object(delta))
}

/// Makes of `value` what it was when `delta` was taken. After an error `value` is something between.
pub(super) fn apply(delta: &Value, value: &mut Value) -> Result<(), DeltaError> {
    let Value::Object(delta) = delta else {
        *value = delta.clone();
        return Ok(());
    };
    if let Some(whole) = delta.get("=") {
        *value = whole.clone();
        return Ok(());
    }
    if let Some(elements) = delta.get("@") {
        return apply_elements(elements, value);
    }
    let (gone, changed) = (delta.get("-"), delta.get("~"));
    if gone.is_none() && changed.is_none() {
        return Err(DeltaError::NoDelta);
    }
    let Value::Object(object) = value else { return Err(DeltaError::NotAnObject) };
    for key in gone
        .map_or(Some(&[][..]), |gone| gone.as_array().map(Vec::as_slice))
        .ok_or(DeltaError::NoDelta)?
    {
        object.remove(key.as_str().ok_or(DeltaError::NoDelta)?);
    }
    if let Some(changed) = changed {
        for (key, delta) in changed.as_object().ok_or(DeltaError::NoDelta)? {
            match object.get_mut(key) {
                Some(value) => apply(delta, value)?,
                None => apply(delta, object.entry(key.as_str()).or_insert(Value::Null))?,
            }
        }
    }
    Ok(())
}

fn apply_elements(elements: &Value, value: &mut Value) -> Result<(), DeltaError> {
    let Value::Array(array) = value else { return Err(DeltaError::NotAnArray) };
    for element in elements.as_array().ok_or(DeltaError::NoDelta)? {
        let Some([at, delta]) = element.as_array().map(Vec::as_slice) else {
            return Err(DeltaError::NoDelta);
        };
        let at = at.as_u64().and_then(|at| usize::try_from(at).ok()).ok_or(DeltaError::NoDelta)?;
        let mut element = mem::take(array.get_mut(at).ok_or(DeltaError::NotAnArray)?);
        apply(delta, &mut element)?;
        array[at] = element;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(old: &Value, new: &Value, expected: Option<&Value>) {
        let delta = diff(old, new);
        assert_eq!(expected, delta.as_ref(), "{old} to {new}");
        let mut value = old.clone();
        delta.iter().for_each(|delta| apply(delta, &mut value).unwrap());
        assert_eq!(new, &value);
    }

    #[test]
    fn a_delta_holds_what_changed_and_nothing_else() {
        check(&json!(1), &json!(1), None);
        check(&json!(1), &json!(null), Some(&json!(null)));
        check(&json!([1, 2, 3]), &json!([1, 5, 3]), Some(&json!({ "@": [[1, 5]] })));
        check(&json!([1]), &json!([1, 2]), Some(&json!([1, 2])));
        check(&json!([1]), &json!({ "~": 2 }), Some(&json!({ "=": { "~": 2 } })));
        check(
            &json!({ "a": 1, "b": { "c": 2, "d": 3 }, "e": 4 }),
            &json!({ "a": 1, "b": { "c": 2, "d": 9 }, "f": {} }),
            Some(&json!({ "-": ["e"], "~": { "b": { "~": { "d": 9 } }, "f": { "=": {} } } })),
        );
    }

    #[track_caller]
    fn check_refused(value: &Value, delta: &Value, expected: DeltaError) {
        assert_eq!(Err(expected), apply(delta, &mut value.clone()), "{delta} to {value}");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        check_refused(&json!([]), &json!({ "~": {} }), DeltaError::NotAnObject);
        check_refused(&json!({}), &json!({ "~": { "a": { "~": {} } } }), DeltaError::NotAnObject);
        check_refused(&json!({}), &json!({ "@": [] }), DeltaError::NotAnArray);
        check_refused(&json!([1]), &json!({ "@": [[1, 5]] }), DeltaError::NotAnArray);
        check_refused(&json!([1]), &json!({ "@": [[0]] }), DeltaError::NoDelta);
        check_refused(&json!({}), &json!({}), DeltaError::NoDelta);
        check_refused(&json!({}), &json!({ "-": 3 }), DeltaError::NoDelta);
        check_refused(&json!({}), &json!({ "-": [3] }), DeltaError::NoDelta);
    }

    /// Any JSON, with few keys, some of which are those of deltas.
    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0..4_u64).prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[ab]{0,2}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 48, 5, |inner| {
            let key = prop_oneof!["[a-c]", "[-=~@]"];
            let object = proptest::collection::btree_map(key, inner.clone(), 0..5);
            prop_oneof![
                proptest::collection::vec(inner, 0..4).prop_map(Value::from),
                object.prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_delta_makes_the_new_of_the_old(old in value(), new in value()) {
            let mut got = old.clone();
            if let Some(delta) = diff(&old, &new) {
                apply(&delta, &mut got).unwrap();
            }
            prop_assert_eq!(got, new);
        }

        #[test]
        fn any_delta_is_applied_or_refused(delta in value(), mut value in value()) {
            let _ = apply(&delta, &mut value);
        }
    }
}
