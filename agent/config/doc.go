// Package config reads what people write: the definitions of services and the
// agent's configuration, both strict JSON (RFC 8259). A document is accepted as
// a whole or not at all. What is wrong with it is told all at once, each fault
// with file, line, column and field, with what is allowed instead; a key that
// this version does not serve is refused rather than ignored.
//
// One table per document (definition.go, agent.go) names its keys. Reading,
// writing, comparing and the JSON Schemas in api/schema all follow that table.
package config
