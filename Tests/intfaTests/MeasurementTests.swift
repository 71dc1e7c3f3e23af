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

  @Test(arguments: [
    ["--causal"], ["--input-type", "float16"], ["--query-length", "3"],
  ])
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
        "prepassSeconds", "gops", "peakGops", "fractionOfPeak", "tileLoopFractionOfPeak",
        "relativeL1", "cosine", "inputType",
      ]
    )
    let objects = try run.objects()
    #expect(objects.count == 4)
    for object in objects {
      let seconds = try #require(object["seconds"] as? Double)
      let gops = try #require(object["gops"] as? Double)
      let queries = try #require(object["queryLength"] as? Int)
      let keys = try #require(object["keyValueLength"] as? Int)
      #expect(queries == (arguments.last == "3" ? 3 : keys))
      let prepass = try #require(object["prepassSeconds"] as? Double)
      #expect(prepass > 0)
      if let peak = object["peakGops"] as? Double {
        let fraction = try #require(object["fractionOfPeak"] as? Double)
        let tileLoop = try #require(object["tileLoopFractionOfPeak"] as? Double)
        #expect((fraction * peak / gops - 1).magnitude < 1e-9)
        #expect((tileLoop * peak * (seconds - prepass) / (gops * seconds) - 1).magnitude < 1e-9)
      }
      let half = arguments == ["--causal"] ? 0.5 : 1
      let operations = 4.0 * 2 * Double(queries * keys) * 16 * half
      #expect((gops * seconds * 1e9 / operations - 1).magnitude < 1e-9)
      #expect(try #require(object["relativeL1"] as? Double) < 0.1)
    }
  }

  @Test func decodeHasTheKeysOfItsContract() throws {
    let run = try CommandRun(
      "bench",
      "--decode",
      "--lengths",
      "65,200",
      "--head-dims",
      "16",
      "--query-heads",
      "2",
      "--kv-heads",
      "1",
      "--precisions",
      "int8,float32",
      "--repeat-seconds",
      "0",
      "--format",
      "json"
    )
    #expect(run.status == 0, "\(run.messages)")
    #expect(
      run.firstKeys == [
        "precision", "backend", "isa", "batch", "queryHeads", "keyValueHeads", "queryLength",
        "keyValueLength", "headDimension", "threads", "bytesPerToken", "cacheBytes", "seconds",
        "secondsMedian", "tokensPerSecond", "bytesPerSecond", "readBytesPerSecond",
        "fractionOfRead", "appendSeconds", "relativeL1", "cosine",
      ]
    )
    let objects = try run.objects()
    #expect(objects.count == 4)
    for object in objects {
      let seconds = try #require(object["seconds"] as? Double)
      let bytes = try #require(object["cacheBytes"] as? Double)
      let rate = try #require(object["bytesPerSecond"] as? Double)
      let perToken = try #require(object["bytesPerToken"] as? Double)
      let keys = try #require(object["keyValueLength"] as? Int)
      #expect(object["queryLength"] as? Int == 1)
      #expect((rate * seconds / bytes - 1).magnitude < 1e-9)
      #expect(bytes == perToken * Double(keys))
      #expect(try #require(object["relativeL1"] as? Double) < 0.1)
    }
  }

  @Test func benchTakesSeveralInstructionSets() throws {
    let names = InstructionSet.supported.map(\.rawValue)
    let run = try CommandRun(
      "bench",
      "--lengths",
      "65",
      "--head-dims",
      "16",
      "--query-heads",
      "1",
      "--kv-heads",
      "1",
      "--precisions",
      "int8,float32",
      "--isa",
      names.joined(separator: ","),
      "--repeat-seconds",
      "0",
      "--format",
      "json"
    )
    #expect(run.status == 0, "\(run.messages)")
    let found = try run.objects().compactMap { $0["isa"] as? String }
    #expect(found == names.flatMap { [$0, $0] })
  }

  @Test func benchOfTheReferenceHasNoPrepass() throws {
    let run = try CommandRun(
      "bench",
      "--lengths",
      "17",
      "--head-dims",
      "8",
      "--query-heads",
      "1",
      "--kv-heads",
      "1",
      "--precisions",
      "int8",
      "--backend",
      "reference",
      "--repeat-seconds",
      "0",
      "--format",
      "json"
    )
    #expect(run.status == 0, "\(run.messages)")
    let object = try #require(run.objects().first)
    for key in ["prepassSeconds", "peakGops", "fractionOfPeak", "tileLoopFractionOfPeak"] {
      #expect(object[key] is NSNull)
    }
  }

  @Test func paperShowsPublishedFigures() throws {
    let json = try CommandRun(
      "paper",
      "--experiments",
      "error",
      "--lengths",
      "1024,48",
      "--format",
      "json"
    )
    #expect(json.status == 0, "\(json.messages)")
    #expect(
      json.firstKeys == [
        "distribution", "keyValueLength", "precision", "isa", "relativeL1", "meanRelativeError",
        "publishedMeanRelativeError", "experiment", "batch", "heads", "headsMeasured", "threads",
        "seconds", "secondsMedian", "timeSaved", "speedOverBFloat16", "publishedImprovement",
      ]
    )
    let objects = try json.objects()
    #expect(objects.count == 16)
    let published = objects.compactMap { $0["publishedMeanRelativeError"] as? Double }
    #expect(published == [0.0746, 0.0089, 0.0405, 0.0894, 0.00317, 0.0169])
  }

  @Test(arguments: [("1024,33", "0", 1), ("8", "0.5", 6)])
  func paperMeasuresTheHeadsThatFit(lengths: String, seconds: String, heads: Int) throws {
    let run = try CommandRun(
      "paper",
      "--experiments",
      "speed",
      "--lengths",
      lengths,
      "--batch",
      "2",
      "--heads",
      "3",
      "--threads",
      "1",
      "--seconds-per-length",
      seconds,
      "--format",
      "json"
    )
    #expect(run.status == 0, "\(run.messages)")
    let objects = try run.objects()
    #expect(objects.count == (heads == 1 ? 6 : 3))
    var baselines: [Int: Double] = [:]
    for object in objects where object["precision"] as? String == "bfloat16" {
      baselines[try #require(object["keyValueLength"] as? Int)] = object["seconds"] as? Double
    }
    for object in objects {
      #expect(object["experiment"] as? String == "speed")
      #expect(object["headsMeasured"] as? Int == heads)
      let length = try #require(object["keyValueLength"] as? Int)
      let seconds = try #require(object["seconds"] as? Double)
      let baseline = try #require(baselines[length])
      let saved = try #require(object["timeSaved"] as? Double)
      let speed = try #require(object["speedOverBFloat16"] as? Double)
      #expect((saved - (1 - seconds / baseline)).magnitude < 1e-9)
      #expect((speed * seconds / baseline - 1).magnitude < 1e-9)
    }
    let published = objects.compactMap { $0["publishedImprovement"] as? Double }
    #expect(published == (heads == 1 ? [0.31] : []))
  }

  @Test func paperSaysWhereProtocolsDiffer() throws {
    let table = try CommandRun("paper", "--lengths", "48", "--seconds-per-length", "0")
    #expect(table.output.contains("Where the protocols of the errors differ"))
    #expect(table.output.contains("Where the protocols of the speeds differ"))
    #expect(table.output.contains("of 128"))
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
        "instructionSets", "isa", "INTFA_ISA", "cacheDirectory", "gpus", "cudaDriver",
        "cudaCompiler",
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
        "keyValueBytesPerToken", "cacheBytesPerToken", "cacheOfBFloat16", "operations",
      ]
    )
    let object = try #require(run.objects().first)
    #expect(object["cacheBytesPerToken"] as? Double == 209)
    #expect(object["cacheOfBFloat16"] as? Double == 209.0 / 512)
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
