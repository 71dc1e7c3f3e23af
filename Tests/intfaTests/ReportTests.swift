import Testing
import intfa

@Suite struct ReportTests {
  private var report: Report {
    var report = Report([
      Column("name", "name"),
      Column("count", "n"),
      Column("error", "error", .percent(2)),
      Column("seconds", "ms", .fixed(1, times: 1000)),
      Column("hidden", nil),
      Column("parts", "parts"),
      Column("passed", "passed"),
    ])
    report.append([
      .text("one"), .integer(7), .number(0.01234), .number(0.0015), .integer(1),
      .integers([64, 128]), .flag(true),
    ])
    report.append([
      .text("a \"b\", c"), .integer(1200), .none, .number(.nan), .none, .list(["x", "y"]),
      .flag(false),
    ])
    return report
  }

  @Test func tableAlignsColumns() {
    #expect(
      report.text(.table) == """
        name         n   error   ms  parts    passed
        --------  ----  ------  ---  -------  ------
        one          7  1.23 %  1.5  64, 128  yes
        a "b", c  1200       -  nan  x, y     no
        """
    )
  }

  @Test func uprightTableHasALinePerColumn() {
    let lines = report.text(.table, upright: true).split(separator: "\n")
    #expect(lines.prefix(2) == ["name    one", "n       7"])
  }

  @Test func jsonKeepsKeysInOrderAndFiguresInFull() {
    #expect(
      report.text(.json) == #"""
        [
          {"name": "one", "count": 7, "error": 0.01234, "seconds": 0.0015, "hidden": 1, "parts": [64, 128], "passed": true},
          {"name": "a \"b\", c", "count": 1200, "error": null, "seconds": null, "hidden": null, "parts": ["x", "y"], "passed": false}
        ]
        """#
    )
    #expect(Report([Column("a", "a")]).text(.json) == "[]")
  }

  @Test func jsonEscapesControlCharacters() {
    var report = Report([Column("a", "a")])
    report.append([.text("\u{1}\n\t\\é")])
    #expect(report.text(.json) == "[\n  {\"a\": \"\\u0001\\n\\t\\\\é\"}\n]")
  }

  @Test func csvQuotesWhatNeedsIt() {
    #expect(
      report.text(.csv) == """
        name,count,error,seconds,hidden,parts,passed
        one,7,0.01234,0.0015,1,64 128,true
        "a ""b"", c",1200,,nan,,x y,false
        """
    )
  }

  @Test(arguments: [
    (0.0, 2, "0.00"), (1.005, 2, "1.00"), (-1.239, 2, "-1.24"), (0.996, 2, "1.00"),
    (12345.6, 0, "12346"), (1e-9, 3, "<0.001"), (-1e-9, 3, ">-0.001"), (0.05, 1, "0.1"),
    (.infinity, 1, "inf"),
  ])
  func fixedDecimals(value: Double, digits: Int, text: String) {
    #expect(Decimal.fixed(value, digits) == text)
  }
}
