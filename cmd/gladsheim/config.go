package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gladsheim/gladsheim/agent/config"
	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/platform"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// Where an agent's files are if nobody says otherwise.
const (
	configFile  = "/etc/gladsheim/gladsheim.json"
	servicesDir = "/etc/gladsheim/services.d"
)

func (a *app) configCommand() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Check, show and describe configuration and definitions"}
	c.AddCommand(a.configCheckCommand(), a.configShowCommand(), a.configSchemaCommand())
	return c
}

func (a *app) configCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check [FILE|DIR]…",
		Short: "Check definitions and configuration without an agent",
		Long: `Check definitions and configuration without an agent; exit with 6 if something is
wrong with them. A directory is one of definitions, NAME.json. Without arguments
the files of this host are checked: ` + configFile + `
and ` + servicesDir + `.

All definitions are checked beside each other: those that a service names have to be
among them, and none may come before itself. Of one file alone that can not be told.`,
		Args: anyNames,
		RunE: func(_ *cobra.Command, places []string) error {
			if len(places) == 0 {
				for _, place := range []string{configFile, servicesDir} {
					if _, err := os.Lstat(place); err == nil {
						places = append(places, place)
					}
				}
			}
			c := check{found: map[service.Name]*config.Definition{}, faulty: map[service.Name]bool{}}
			for _, place := range places {
				if err := c.look(place); err != nil {
					return err
				}
			}
			faults := append(c.faults, c.together()...)
			for _, f := range faults {
				if err := a.showFault(f); err != nil {
					return err
				}
			}
			if len(faults) > 0 {
				return &failure{exitInvalid, fmt.Errorf("cannot accept this: %s", plural(len(faults), "fault"))}
			}
			if a.machine() {
				return nil
			}
			_, err := fmt.Fprintf(a.out, "%s checked, nothing is wrong\n", plural(c.checked, "file"))
			return err
		},
	}
}

// showFault shows one fault: to people beside the data, to programs as the
// message by which the agent tells it.
func (a *app) showFault(f service.Fault) error {
	if a.machine() {
		return a.printJSON(&gladsheimv1.DefinitionFault{
			File: f.File, Line: uint32(f.Line), Column: uint32(f.Column), Field: f.Field, Message: f.Message,
		})
	}
	_, err := fmt.Fprintln(a.err, plain(f.String()))
	return err
}

// check is a look at files that belong together.
type check struct {
	checked   int // files
	faults    config.Faults
	found     map[service.Name]*config.Definition // those that are good by themselves
	faulty    map[service.Name]bool               // those that are not, as far as they have a name
	directory bool                                // one was among them
}

// look looks at a file or a directory.
func (c *check) look(place string) error {
	info, err := os.Stat(place)
	if err != nil {
		return fmt.Errorf("cannot check it: %w", err)
	}
	if info.IsDir() {
		c.directory = true
		good, faults := config.ReadDefinitions(place, service.Defaults(), config.AnyFile)
		bad := map[string]bool{}
		for _, f := range faults {
			bad[f.File] = true
			c.spoil(f.File, f.Stray)
		}
		c.checked, c.faults = c.checked+len(good)+len(bad), append(c.faults, faults...)
		for _, d := range good {
			c.take(d)
		}
		return nil
	}
	data, err := config.ReadFile(place, config.AnyFile)
	if err != nil {
		return &failure{exitInvalid, err} // as of one in a directory
	}
	c.checked++
	if isConfiguration(place, data) {
		profile, err := platform.Choose("auto", platform.Detect())
		if err != nil {
			return fmt.Errorf("cannot check %s: %w", place, err)
		}
		_, faults := config.ParseAgent(place, data, config.DefaultAgent(profile))
		c.faults = append(c.faults, faults...)
		return nil
	}
	spec, faults := config.ParseDefinition(place, data, service.Defaults())
	if len(faults) > 0 {
		c.faults = append(c.faults, faults...)
		c.spoil(place, spec.Name)
		return nil
	}
	c.take(config.Definition{Spec: spec, Source: place, Document: data})
	return nil
}

// spoil notes that a service is defined, though not well: by its name, or that of the file.
func (c *check) spoil(file string, name service.Name) {
	if !name.IsZero() {
		c.faulty[name] = true
	}
	if name, err := service.ParseName(strings.TrimSuffix(filepath.Base(file), ".json")); err == nil {
		c.faulty[name] = true
	}
}

// take takes a definition that is good by itself.
func (c *check) take(d config.Definition) {
	first := c.found[d.Spec.Name]
	switch {
	case first == nil:
		c.found[d.Spec.Name] = &d
	case filepath.Clean(first.Source) != filepath.Clean(d.Source):
		c.faults = append(c.faults, service.Fault{File: d.Source, Field: "name", Message: fmt.Sprintf("%s is defined in %s, too", d.Spec.Name, first.Source)})
	}
}

// together are the faults of definitions beside each other. One that is alone may name
// others that are elsewhere.
func (c *check) together() (faults config.Faults) {
	alone := !c.directory && len(c.found)+len(c.faulty) < 2
	tangles := config.Tangles(c.found,
		func(n service.Name) bool { return alone || c.faulty[n] },
		func(service.Name) bool { return true },
		"no service %s is defined in what is checked; what an agent has registered is not looked at")
	for _, name := range slices.SortedFunc(maps.Keys(tangles), service.Name.Compare) {
		faults = append(faults, tangles[name]...)
	}
	return faults
}

// isConfiguration tells the agent's configuration from a definition: it has the
// one key that no definition has. What is no JSON goes by its name.
func isConfiguration(path string, data []byte) bool {
	var keys map[string]json.RawMessage
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(&keys); err != nil {
		return filepath.Base(path) == filepath.Base(configFile)
	}
	_, found := keys["gladsheim"]
	return found
}

func (a *app) configShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show",
		Short: "Show the configuration in force, with everything filled in",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.connect(); err != nil {
				return err
			}
			ctx, cancel := a.question(cmd.Context())
			defer cancel()
			c, err := a.client.GetConfig(ctx, &gladsheimv1.GetConfigRequest{})
			if err != nil {
				return err
			}
			return a.present(c, func() error {
				for _, o := range c.GetOlderDefaults() { // beside the document, which shall stay one
					fmt.Fprintf(a.err, "gladsheim: %s runs with %s %s, the default when it was started; now that is %s, from its next restart on\n",
						plain(o.GetServiceName()), plain(o.GetLimit()), limit(o.GetLimit(), &o.Has), limit(o.GetLimit(), &o.Now))
				}
				return a.showDocument(c.GetJson())
			})
		},
	}
}

func (a *app) configSchemaCommand() *cobra.Command {
	return &cobra.Command{
		Use:       "schema [service|agent]",
		Short:     "Print the JSON Schema of definitions, or of the agent's configuration",
		ValidArgs: []string{"service", "agent"},
		Args:      anyNames,
		RunE: func(_ *cobra.Command, args []string) error {
			document := config.DefinitionSchema
			switch {
			case len(args) == 0 || len(args) == 1 && args[0] == "service":
			case len(args) == 1 && args[0] == "agent":
				document = config.AgentSchema
			default:
				return usage(errors.New("cannot print that schema; there are service and agent"))
			}
			return a.showDocument(string(document()))
		},
	}
}
