package main

import (
	"fmt"

	"github.com/spf13/cobra"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// steps are those that are counted of each service, in the order in which they are taken.
var steps = []string{"warn", "throttle", "stop", "livelock"}

func (a *app) metricsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "metrics",
		Short: "Print figures of all services for Prometheus",
		Long: `Print figures of all services for Prometheus, in its text format, as the textfile
collector of the node exporter reads them.

Counters begin at 0 when the agent begins.`,
		Example: "  gladsheim metrics > /var/lib/prometheus/node-exporter/gladsheim.prom.new",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.connect(); err != nil {
				return err
			}
			ctx, cancel := a.question(cmd.Context())
			defer cancel()
			services, err := a.client.ListServices(ctx, &gladsheimv1.ListServicesRequest{})
			if err != nil {
				return err
			}
			return a.present(services, func() error { return a.showMetrics(services) })
		},
	}
}

// showMetrics needs no escapes: neither names nor states and steps have a quote in them
// (https://prometheus.io/docs/instrumenting/exposition_formats/).
func (a *app) showMetrics(services *gladsheimv1.ServiceList) error {
	fmt.Fprintln(a.out, "# HELP gladsheim_service_state 1 for the state that the service is in, 0 for the others.")
	fmt.Fprintln(a.out, "# TYPE gladsheim_service_state gauge")
	for _, s := range services.GetServices() {
		for _, state := range stateWords() {
			is := 0
			if stateWord(s.GetState()) == state {
				is = 1
			}
			fmt.Fprintf(a.out, "gladsheim_service_state{service=\"%s\",state=\"%s\"} %d\n", plain(s.GetServiceName()), state, is)
		}
	}
	fmt.Fprintln(a.out, "# HELP gladsheim_service_enforcements_total What was done about a service that uses too much, by the step that was taken.")
	fmt.Fprintln(a.out, "# TYPE gladsheim_service_enforcements_total counter")
	for _, s := range services.GetServices() {
		taken := map[string]uint64{}
		for _, e := range s.GetEnforcements() {
			taken[e.GetStep()] = e.GetCount()
		}
		for _, step := range steps {
			_, err := fmt.Fprintf(a.out, "gladsheim_service_enforcements_total{service=\"%s\",step=\"%s\"} %d\n", plain(s.GetServiceName()), step, taken[step])
			if err != nil {
				return err
			}
		}
	}
	return nil
}
