package api

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// Relations and conditions have the words of the wire.
func TestDependencyWords(t *testing.T) {
	for _, r := range []service.Relation{service.Requires, service.After, service.Binds} {
		require.Equal(t, "DEPENDENCY_KIND_"+strings.ToUpper(r.String()), (gladsheimv1.DependencyKind(r) + 1).String())
	}
	for _, c := range []service.Condition{service.ConditionReady, service.ConditionStarted, service.ConditionHealthy, service.ConditionCompleted} {
		require.Equal(t, "DEPENDENCY_CONDITION_"+strings.ToUpper(c.String()), (gladsheimv1.DependencyCondition(c) + 1).String())
	}
}

func TestDependencies(t *testing.T) {
	db, web := service.MustName("db"), service.MustName("web")
	running := &service.Status{Name: db, Machine: service.Machine{State: service.Running}}
	need := service.Edge{From: web, Need: service.Need{Service: db}}
	require.True(t, toDependency(need, running).GetFulfilled())
	require.False(t, toDependency(need, nil).GetFulfilled())
	need.Condition = service.ConditionCompleted
	require.False(t, toDependency(need, running).GetFulfilled())
	require.Equal(t, gladsheimv1.DependencyCondition_DEPENDENCY_CONDITION_COMPLETED, toDependency(need, running).GetCondition())
	need.Relation = service.After
	require.True(t, toDependency(need, nil).GetFulfilled())
	require.Zero(t, toDependency(need, nil).GetCondition())
}
