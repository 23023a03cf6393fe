package api

import (
	"context"
	"errors"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// catalog serves the definitions.
type catalog struct {
	gladsheimv1.UnsafeCatalogServiceServer
	*Server
}

func (c *catalog) Register(ctx context.Context, req *gladsheimv1.RegisterRequest) (*gladsheimv1.RegisterResponse, error) {
	change, err := c.agent.Register(ctx, req.GetFile(), req.GetDefinition(), req.GetReplace(), peerOf(ctx).String())
	if err != nil {
		return nil, err
	}
	definition, err := c.agent.Definition(change.Service)
	if err != nil {
		return nil, err
	}
	return &gladsheimv1.RegisterResponse{Definition: toDefinition(definition), Change: toChange(change)}, nil
}

func (c *catalog) Unregister(ctx context.Context, req *gladsheimv1.UnregisterRequest) (*gladsheimv1.Definition, error) {
	name, err := service.ParseName(req.GetServiceName())
	if err != nil {
		return nil, err
	}
	definition, err := c.agent.Definition(name)
	if err != nil {
		return nil, err
	}
	if err := c.agent.Unregister(ctx, name, peerOf(ctx).String()); err != nil {
		return nil, err
	}
	return toDefinition(definition), nil
}

func (c *catalog) GetDefinition(_ context.Context, req *gladsheimv1.GetDefinitionRequest) (*gladsheimv1.Definition, error) {
	name, err := service.ParseName(req.GetServiceName())
	if err != nil {
		return nil, err
	}
	definition, err := c.agent.Definition(name)
	if err != nil {
		return nil, err
	}
	return toDefinition(definition), nil
}

func (c *catalog) ListDefinitions(context.Context, *gladsheimv1.ListDefinitionsRequest) (*gladsheimv1.DefinitionList, error) {
	out := &gladsheimv1.DefinitionList{}
	for _, d := range c.agent.Definitions() {
		out.Definitions = append(out.Definitions, toDefinition(d))
	}
	return out, nil
}

func (c *catalog) Apply(ctx context.Context, req *gladsheimv1.ApplyRequest) (*gladsheimv1.ApplyResponse, error) {
	if req.GetPrune() {
		return nil, &service.Error{Op: "apply", Kind: service.Invalid, Err: errors.New("prune is not served; unregister by name what is to go")}
	}
	files := make([]service.File, 0, len(req.GetFiles()))
	for _, f := range req.GetFiles() {
		files = append(files, service.File{Name: f.GetName(), Content: f.GetContent()})
	}
	changes, err := c.agent.Apply(ctx, files, req.GetDryRun(), peerOf(ctx).String())
	if err != nil {
		return nil, err
	}
	out := &gladsheimv1.ApplyResponse{}
	for _, change := range changes {
		out.Changes = append(out.Changes, toChange(change))
	}
	return out, nil
}

func toDefinition(d service.Definition) *gladsheimv1.Definition {
	return &gladsheimv1.Definition{
		ServiceName: d.Name.String(), Json: utf8(string(d.Document)), Source: utf8(d.Source),
		Generation: d.Generation, ChangedUnixMs: millis(d.Changed),
	}
}

// toChange needs no tables: the words have the numbers of the wire, and a test
// holds them together.
func toChange(c service.Change) *gladsheimv1.DefinitionChange {
	out := &gladsheimv1.DefinitionChange{
		ServiceName: c.Service.String(),
		Action:      gladsheimv1.DefinitionChange_Action(c.Action),
		Effect:      gladsheimv1.DefinitionChange_Effect(c.Effect),
	}
	for _, field := range c.Fields {
		out.Fields = append(out.Fields, utf8(field))
	}
	return out
}
