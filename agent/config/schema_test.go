package config

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/google/jsonschema-go/jsonschema"
	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

func TestSchemaFiles(t *testing.T) {
	golden(t, "../../api/schema/service.schema.json", DefinitionSchema())
	golden(t, "../../api/schema/agent.schema.json", AgentSchema())
}

func resolved(t testing.TB, document []byte) *jsonschema.Resolved {
	t.Helper()
	var s jsonschema.Schema
	require.NoError(t, json.Unmarshal(document, &s))
	r, err := s.Resolve(&jsonschema.ResolveOptions{ValidateDefaults: true})
	require.NoError(t, err)
	return r
}

func decode(t testing.TB, document []byte) (v any) {
	t.Helper()
	require.NoError(t, json.NewDecoder(bytes.NewReader(document)).Decode(&v))
	return v
}

func TestSchemaAcceptsWhatIsServed(t *testing.T) {
	definitions, agents := resolved(t, DefinitionSchema()), resolved(t, AgentSchema())
	web := read(t, "testdata/web.json")
	require.NoError(t, definitions.Validate(decode(t, web)))
	spec, faults := ParseDefinition("web.json", web, service.Defaults())
	require.Empty(t, faults)
	require.NoError(t, definitions.Validate(decode(t, formatDefinition(spec))))
	for _, ready := range []string{`{"settle": "2s"}`, `{"type": "process", "settle": "2s"}`, `{"type": "log", "pattern": "^up"}`} {
		require.NoError(t, definitions.Validate(decode(t, []byte(`{"name": "a", "exec": ["/a"], "ready": `+ready+`}`))), ready)
	}
	require.NoError(t, agents.Validate(decode(t, FormatAgent(asgard(t)))))
	require.NoError(t, agents.Validate(decode(t, read(t, "../../examples/gladsheim.json"))))
}

// TestSchemaRefuses: an editor warns of the same things as the agent, as far as
// a schema can say them.
func TestSchemaRefuses(t *testing.T) {
	schema := resolved(t, DefinitionSchema())
	for _, members := range []string{
		`"exce": 1`, `"Name": "b"`, `"exec": []`, `"exec": ["a"]`, `"requires": [3]`, `"requires": [{"condition": "ready"}]`, `"after": [{"service": "b"}]`, `"power": "low"`, `"power": ""`, `"priority": 1001`, `"priority": -1`, `"log": "syslog"`,
		`"log_rotate": {"size": 1}`, `"log_rotate": {"total": "1MB"}`, `"log": "null", "log_rotate": {}`, `"log": "journal", "log_rotate": {}`,
		`"log_full": "drop"`, `"log": "null", "log_full": "fail"`, `"log": "journal", "log_full": "block"`,
		`"limits": {"memory_max": "256MB"}`, `"limits": {"memory_max": 5}`, `"limits": {"cpu_percent": 0.5}`, `"limits": {"pids_max": "many"}`,
		`"limits": {"cpu_weight": 10001}`, `"limits": {"cpu_weight": "max"}`, `"limits": {"memory_warning_percent": 101}`,
		`"ready": {"type": "http"}`, `"ready": {"type": "log"}`, `"ready": {"type": "tcp", "address": "a:1", "settle": "1s"}`, `"ready": {"url": "http://a/"}`,
		`"health": {"type": "tcp", "address": "a:1", "service": "b"}`, `"health": {"type": "tcp", "address": "a:1", "interval": 5}`, `"health": {"type": "tcp", "address": "a:1", "interval": "5 s"}`,
		`"health": {"type": "tcp", "address": "a:1", "threshold": 0}`, `"health": {"interval": "5s"}`, `"health": {"type": "process", "threshold": 3}`, `"restart": {"policy": "no"}`, `"stop": {"signal": "sigterm"}`, `"stop": {"signal": "65"}`,
		`"umask": "1777"`, `"user": "0day"`, `"environment": {"A=B": ""}`, `"custom": {"a": 1}`, `"working_directory": "srv"`,
	} {
		document := []byte(`{"name": "a", "exec": ["/a"], ` + members + `}`)
		if bytes.Contains(document[30:], []byte(`"exec": [`)) {
			document = []byte(`{"name": "a", ` + members + `}`)
		}
		require.Error(t, schema.Validate(decode(t, document)), members)
		_, faults := ParseDefinition("", document, service.Defaults())
		require.NotEmpty(t, faults, members)
	}
	require.Error(t, schema.Validate(decode(t, []byte(`{"exec": ["/a"]}`))))
	require.Error(t, resolved(t, AgentSchema()).Validate(decode(t, []byte(`{}`))))
}
