package config

import (
	"github.com/google/jsonschema-go/jsonschema"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/platform"
)

// DefinitionSchema is the JSON Schema (draft 2020-12) of a service definition,
// as a document. It accepts all that ParseDefinition does.
func DefinitionSchema() []byte {
	return schemaDocument("Gladsheim service definition", definition.schema(service.Defaults()))
}

// AgentSchema is the JSON Schema of the agent's configuration. It accepts all
// that ParseAgent does; defaults that differ by platform are left out.
func AgentSchema() []byte {
	return schemaDocument("Gladsheim agent configuration", agentFile.schema(DefaultAgent(platform.Profile{})))
}

func schemaDocument(title string, s *jsonschema.Schema) []byte {
	s.Schema = "https://json-schema.org/draft/2020-12/schema"
	s.Title = title
	return pretty(s)
}
