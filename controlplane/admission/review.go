package admission

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/controlplane/compile"
	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/controlplane/source/kube"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// Judge returns what is wrong with an object by itself, or, when nothing is, what
// it would come to among the objects that there are.
type Judge func(source.Object) (problems, conditions []compile.Condition)

// What is said about one object: how many texts, and how long one is, in bytes. They
// quote what people wrote.
const (
	maxTexts = 10
	maxText  = 1000
)

// Review answers one request: an object in which something is wrong is refused,
// unless all of that was wrong with it before, or it is on its way out. What cannot
// be enforced as written is a warning.
func Review(judge Judge, req *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	out := &admissionv1.AdmissionResponse{UID: req.UID, Allowed: true}
	if req.Operation != admissionv1.Create && req.Operation != admissionv1.Update || req.SubResource != "" {
		return out
	}
	problems, conditions := examine(judge, req, req.Object.Raw)
	if len(problems) > 0 && !leaving(req.Object.Raw) {
		if req.Operation == admissionv1.Update {
			before, _ := examine(judge, req, req.OldObject.Raw)
			problems = added(problems, before)
		}
		if len(problems) > 0 {
			return deny(out, problems)
		}
	}
	out.Warnings = warnings(conditions)
	return out
}

func deny(out *admissionv1.AdmissionResponse, problems []compile.Condition) *admissionv1.AdmissionResponse {
	out.Allowed = false
	out.Result = &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusUnprocessableEntity, Reason: metav1.StatusReasonInvalid,
		Message: strings.Join(limited(problems), "; ")}
	return out
}

// examine returns what is wrong with an object of the request, and otherwise what
// it would come to.
func examine(judge Judge, req *admissionv1.AdmissionRequest, raw []byte) (problems, conditions []compile.Condition) {
	o, problem, known := kube.Decode(req.Kind.Group, source.Kind(req.Kind.Kind), raw)
	switch {
	case !known:
		return nil, nil
	case problem != nil:
		return []compile.Condition{{Reason: problem.Reason, Field: problem.Field, Message: problem.Detail}}, nil
	}
	return judge(o)
}

// leaving reports whether an object is being deleted: then nothing may hold up
// those that remove their finalizers.
func leaving(raw []byte) bool {
	var o struct {
		Metadata struct {
			DeletionTimestamp *string `json:"deletionTimestamp"`
		} `json:"metadata"`
	}
	return json.Unmarshal(raw, &o) == nil && o.Metadata.DeletionTimestamp != nil
}

// added returns the problems that were not there before. Which place in a list
// they are at does not matter: what is repaired may move what is not.
func added(problems, before []compile.Condition) []compile.Condition {
	old := map[string]int{}
	for _, p := range before {
		old[placeless(p)]++
	}
	var out []compile.Condition
	for _, p := range problems {
		if key := placeless(p); old[key] > 0 {
			old[key]--
		} else {
			out = append(out, p)
		}
	}
	return out
}

var place = regexp.MustCompile(`\[\d+\]`)

func placeless(c compile.Condition) string { return place.ReplaceAllString(c.Text(), "[]") }

// warnings returns what is accepted but does not do what it says.
func warnings(conditions []compile.Condition) []string {
	var lossy []compile.Condition
	for _, c := range conditions {
		if !c.Status && c.Code != compile.CodeForeign && worthWarning(c) {
			lossy = append(lossy, c)
		}
	}
	return limited(lossy)
}

// worthWarning leaves out what the next object of the same file may put right,
// such as a backend that is not there yet; not with policies, which protect
// nothing until then.
func worthWarning(c compile.Condition) bool {
	switch c.Reason {
	case reason.Unsupported, reason.InvalidValue, reason.MissingField, reason.Conflict:
		return true
	case reason.TargetNotFound, reason.NoWaypoint:
		return c.Type == compile.WaypointAccepted
	}
	return c.Partial
}

func limited(conditions []compile.Condition) []string {
	var out []string
	for _, c := range conditions[:min(len(conditions), maxTexts)] {
		out = append(out, clip(c.Text(), maxText))
	}
	if rest := len(conditions) - maxTexts; rest > 0 {
		out = append(out, fmt.Sprintf("and %d more", rest))
	}
	return out
}

// clip shortens a text.
func clip(text string, to int) string {
	if len(text) > to {
		text = strings.ToValidUTF8(text[:to], "") + "…"
	}
	return text
}
