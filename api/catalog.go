package api

import (
	"context"

	"google.golang.org/protobuf/proto"

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
		return nil, inAnswerTo("unregister", err)
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
		return nil, inAnswerTo("show the definition of", err)
	}
	return toDefinition(definition), nil
}

// ListDefinitions gives a page: at least one definition, and no more than fit.
// The token is the last name of the page before.
func (c *catalog) ListDefinitions(_ context.Context, req *gladsheimv1.ListDefinitionsRequest) (*gladsheimv1.DefinitionList, error) {
	out, size := &gladsheimv1.DefinitionList{}, 0
	for _, d := range c.agent.Definitions() {
		if d.Name.String() <= req.GetPageToken() {
			continue
		}
		one := toDefinition(d)
		if size += proto.Size(one); size > maxSend/2 && len(out.Definitions) > 0 {
			out.NextPageToken = out.Definitions[len(out.Definitions)-1].GetServiceName()
			break
		}
		out.Definitions = append(out.Definitions, one)
	}
	return out, nil
}

func (c *catalog) Apply(ctx context.Context, req *gladsheimv1.ApplyRequest) (*gladsheimv1.ApplyResponse, error) {
	files := make([]service.File, 0, len(req.GetFiles()))
	for _, f := range req.GetFiles() {
		files = append(files, service.File{Name: f.GetName(), Content: f.GetContent()})
	}
	changes, err := c.agent.Apply(ctx, files, service.ApplyOptions{DryRun: req.GetDryRun(), Replace: req.Replace}, peerOf(ctx).String())
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
