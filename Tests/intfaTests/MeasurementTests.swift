import AttentionTestSupport
import Foundation
import IntFlashAttention
import Testing

@Suite struct MeasurementTests {
  // MARK: check

  private static let checkKeys = [
    "input", "precision", "isa", "relativeL1", "cosine", "rmse", "meanRelativeError", "gate",
    "passed", "backend", "distanceToSpecification", "cosineGate", "specificationGate",
  ]

  @Test func checkOfSyntheticInputsHolds() throws {
    let run = try CommandRun(
      "check",
      "--inputs",
      "normal,uniform",
      "--lengths",
      "256",
      "--precision",
      "int8QueryKey,float16,float32",
      "--format",
      "json"
    )
    #expect(run.status == 0, "\(run.messages)")
    #expect(run.firstKeys == Self.checkKeys)
    let objects = try run.objects()
    let isChosen = ProcessInfo.processInfo.environment["INTFA_ISA"] != nil
    #expect(objects.count == 6 * (isChosen ? 1 : InstructionSet.supported.count))
    #expect(objects.allSatisfy { $0["passed"] as? Bool == true })
  }

  @Test func checkFindsAWrongOutput() throws {
    let folder = try TemporaryFolder()
    let inputs = TestInputs(try InputFiles.shape())
    let path = folder.path("wrong.safetensors")
    var output = try inputs.exact().output
    try InputFiles.write(inputs, to: folder.path("right.safetensors"), output: output)
    for index in 0..<output.count / 10 { output[index] += 1 }
    try InputFiles.write(inputs, to: path, output: output)
    let arguments = ["--inputs", "none", "--precision", "float32"]
    let right = try CommandRun(["check", folder.path("right.safetensors")] + arguments)
    #expect(right.status == 0, "\(right.messages)")
    let wrong = try CommandRun(["check", path] + arguments)
    #expect(wrong.status == 1)
    #expect(wrong.messages.contains("broken: wrong.safetensors, float32"))
    #expect(wrong.output.contains("wrong.safetensors"))
  }

  @Test func checkAveragesFourFiles() throws {
    let folder = try TemporaryFolder()
    let paths = try (0..<4).map { seed in
      let path = folder.path("\(seed).safetensors")
      let inputs = TestInputs(try InputFiles.shape(), seed: UInt64(seed))
      try InputFiles.write(inputs, to: path)
      return path
    }
    let run = try CommandRun(
      ["check"] + paths + ["--inputs", "none", "--precision", "float32", "--format", "csv"]
    )
    #expect(run.status == 0, "\(run.messages)")
    #expect(run.output.contains("\nmean of 4 files,float32,"))
  }

  @Test func checkRefusesAnOutputOfAnotherShape() throws {
    let folder = try TemporaryFolder()
    let path = folder.path("in.safetensors")
    let inputs = TestInputs(try InputFiles.shape())
    let output = [Float](repeating: 0, count: 24)
    try InputFiles.write(inputs, to: path, output: output, outputShape: [1, 4, 3, 2])
    let run = try CommandRun("check", path, "--inputs", "none", "--precision", "float32")
    #expect(run.status == 65)
    #expect(run.messages.contains("tensor 'o' has shape [1, 4, 3, 2]"))
  }

  // MARK: bench, paper

  @Test(arguments: [["--causal"], ["--decode"], ["--input-type", "bfloat16"]])
  func benchHasTheKeysOfItsContract(arguments: [String]) throws {
    let run = try CommandRun(
      [
        "bench", "--lengths", "65,32", "--head-dims", "16", "--query-heads", "2", "--kv-heads",
        "1", "--precisions", "int8,float32", "--repeat-seconds", "0", "--format", "json",
      ] + arguments
    )
    #expect(run.status == 0, "\(run.messages)")
    #expect(
      run.firstKeys == [
        "precision", "backend", "isa", "batch", "queryHeads", "keyValueHeads", "queryLength",
        "keyValueLength", "headDimension", "causal", "threads", "seconds", "secondsMedian",
        "prepassSeconds", "gops", "peakGops", "fractionOfPeak", "relativeL1", "cosine",
      ]
    )
    let objects = try run.objects()
    #expect(objects.count == 4)
    for object in objects {
      let seconds = try #require(object["seconds"] as? Double)
      let gops = try #require(object["gops"] as? Double)
      let queries = try #require(object["queryLength"] as? Int)
      let keys = try #require(object["keyValueLength"] as? Int)
      #expect(queries == (arguments == ["--decode"] ? 1 : keys))
      let half = arguments == ["--causal"] ? 0.5 : 1
      let operations = 4.0 * 2 * Double(queries * keys) * 16 * half
      #expect((gops * seconds * 1e9 / operations - 1).magnitude < 1e-9)
      #expect(try #require(object["relativeL1"] as? Double) < 0.1)
    }
  }

  @Test func paperShowsPublishedFigures() throws {
    let json = try CommandRun("paper", "--lengths", "1024,48", "--format", "json")
    #expect(json.status == 0, "\(json.messages)")
    #expect(
      json.firstKeys == [
        "distribution", "keyValueLength", "precision", "isa", "relativeL1", "meanRelativeError",
        "publishedMeanRelativeError",
      ]
    )
    let objects = try json.objects()
    #expect(objects.count == 16)
    let published = objects.compactMap { $0["publishedMeanRelativeError"] as? Double }
    #expect(published == [0.0746, 0.0089, 0.0405, 0.0894, 0.00317, 0.0169])
  }

  @Test func paperSaysWhereProtocolsDiffer() throws {
    let table = try CommandRun("paper", "--lengths", "48")
    #expect(table.output.contains("Where the protocols differ"))
  }

  // MARK: info, explain, demo

  @Test func infoHasItsKeys() throws {
    let run = try CommandRun(
      "info",
      "--format",
      "json",
      environment: ["INTFA_ISA": "portable", "INTFA_CACHE_DIR": "/somewhere"]
    )
    #expect(run.status == 0)
    #expect(
      run.firstKeys == [
        "version", "processor", "architecture", "processors", "cores", "processorLimit", "threads",
        "instructionSets", "isa", "INTFA_ISA", "cacheDirectory", "gpu",
      ]
    )
    let object = try #require(run.objects().first)
    #expect(object["isa"] as? String == "portable")
    #expect(object["INTFA_ISA"] as? String == "portable")
    #expect(object["cacheDirectory"] as? String == "/somewhere")
    #expect(
      object["instructionSets"] as? [String] == InstructionSet.supported.map(\.rawValue)
    )
  }

  @Test func explainRunsNothing() throws {
    // A shape that would take hours.
    let run = try CommandRun(
      "explain",
      "--lengths",
      "1000000",
      "--head-dims",
      "128",
      "--query-heads",
      "64",
      "--kv-heads",
      "8",
      "--precision",
      "int4",
      "--causal",
      "--format",
      "json"
    )
    #expect(run.status == 0, "\(run.messages)")
    #expect(
      run.firstKeys == [
        "precision", "backend", "isa", "batch", "queryHeads", "keyValueHeads", "queryLength",
        "keyValueLength", "headDimension", "valueDimension", "mask", "softmaxScale", "softcap",
        "threads", "kernels", "tileLengths", "queryBlockLength", "workItems", "workspaceBytes",
        "keyValueBytesPerToken", "operations",
      ]
    )
    let object = try #require(run.objects().first)
    #expect(object["tileLengths"] as? [Int] == [64, 128])
    #expect(object["mask"] as? String == "causal")
  }

  #if !DEBUG
  @Test func demoShowsEveryPrecision() throws {
    let folder = try TemporaryFolder()
    let path = folder.path("report.html")
    let run = try CommandRun("demo", "--report", path, "--format", "json")
    #expect(run.status == 0, "\(run.messages)")
    #expect(
      run.firstKeys == [
        "precision", "backend", "isa", "threads", "seconds", "secondsMedian", "speedOverFloat32",
        "speedOverBFloat16", "relativeL1", "cosine", "keyValueBytesPerToken",
      ]
    )
    let names = try run.objects().compactMap { $0["precision"] as? String }
    #expect(names == Precision.allCases.map(\.rawValue).filter { $0 != "int4QueryKey" })
    let page = try String(contentsOfFile: path, encoding: .utf8)
    #expect(page.contains("int8QueryKeyPaper"))
    #expect(!page.contains("{{"))
  }
  #endif
}
