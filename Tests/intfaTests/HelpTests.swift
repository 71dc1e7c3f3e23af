import Testing

@Suite struct HelpTests {
  static let verbs = ["demo", "run", "quantize", "check", "bench", "paper", "info", "explain"]

  @Test(arguments: verbs)
  func everyVerbHasHelp(verb: String) throws {
    let run = try CommandRun(verb, "--help")
    #expect(run.status == 0)
    #expect(run.output.contains("USAGE: intfa \(verb)"))
    #expect(run.messages.isEmpty)
  }

  @Test func rootHelpNamesEveryVerb() throws {
    let run = try CommandRun("--help")
    #expect(run.status == 0)
    for verb in Self.verbs { #expect(run.output.contains("  \(verb) ")) }
  }

  @Test func versionIsPrinted() throws {
    let run = try CommandRun("--version")
    #expect(run.status == 0)
    #expect(run.output.contains(#/^\d+\.\d+\.\d+\n$/#))
  }
}
