internal import CAttentionKernels
internal import Synchronization

extension CPUBackend: CachingBackend {
  package func makeCacheStore(
    for layout: KVCacheLayout
  ) throws(AttentionError) -> any KVCacheStore {
    if let threadCount, threadCount < 1 {
      throw AttentionError(
        .invalidArgument,
        "threadCount is \(threadCount); it must be at least 1, or nil for all"
      )
    }
    guard let method = CPUMethod(layout.recipe) else {
      throw AttentionError(.unsupported, "the CPU backend has no kernel for this recipe")
    }
    return try CPUCacheStore(
      layout: layout,
      method: method,
      instructionSet: try chosenInstructionSet(),
      threadCount: ThreadPool.shared.seatCount(threadCount)
    )
  }
}

/// Units of quantised tokens, packed as the kernels of one instruction set read them.
///
/// For each key/value head: packed keys, packed values, and arrays over tokens; a unit has the same
/// number in all of them.
final class CPUCacheStore: KVCacheStore {
  let layout: KVCacheLayout
  let method: CPUMethod
  let instructions: InstructionSet
  let threadCount: Int
  let keyPlaces: CPUUnitPlaces
  let valuePlaces: CPUUnitPlaces
  let units: CPUMemory

  let keys: CPUMemory.Region  // [Hkv][unit] packed
  let values: CPUMemory.Region  // [Hkv][unit] packed
  let keyScales: CPUMemory.Region  // [Hkv][token] float
  let folds: CPUMemory.Region  // [Hkv][token] float
  let weights: CPUMemory.Region  // [Hkv][token] int8
  /// Written, and so taken from the system, for tiles with an outlier only.
  let realWeights: CPUMemory.Region  // [Hkv][token] float
  let keyUnitBytes: Int
  let valueUnitBytes: Int
  /// [token] float: the biases of capped logits, which nothing else rides on.
  private let zeroBiases: Mutex<CPUMemory?>

  init(
    layout: KVCacheLayout,
    method: CPUMethod,
    instructionSet: InstructionSet,
    threadCount: Int
  ) throws(AttentionError) {
    self.layout = layout
    self.method = method
    instructions = instructionSet
    self.threadCount = threadCount
    let (d, dv) = (layout.headDimension, layout.valueDimension)
    let heads = layout.keyValueHeadCount
    keyPlaces = CPUUnitPlaces(keys: d, method, instructionSet)
    valuePlaces = CPUUnitPlaces(values: dv, method, instructionSet)
    keyUnitBytes = CPUUnitPlaces.keyBytes(d, method, instructionSet)
    valueUnitBytes = CPUUnitPlaces.valueBytes(dv, method, instructionSet)

    var memory = CPUMemory.Layout()
    keys = memory.take(keyUnitBytes * layout.unitCount, parts: heads)
    values = memory.take(valueUnitBytes * layout.unitCount, parts: heads)
    let tokens = method.isTiled ? layout.capacity : 0
    let float = MemoryLayout<Float>.size
    keyScales = memory.take(float * tokens, parts: heads)
    folds = memory.take(float * tokens, parts: heads)
    weights = memory.take(tokens, parts: heads)
    realWeights = memory.take(float * tokens, parts: heads)
    guard let units = CPUMemory(memory, zeroed: false) else {
      throw AttentionError(
        .outOfMemory,
        "no memory for \(layout.capacity) cached tokens, \(memory.byteCount) bytes"
      )
    }
    self.units = units
    zeroBiases = Mutex(nil)
  }

  /// Zeros for every token of the pool.
  var zeros: UnsafePointer<Float> {
    let memory = zeroBiases.withLock { kept in
      if let kept { return kept }
      var layout = CPUMemory.Layout()
      _ = layout.take(MemoryLayout<Float>.size * self.layout.capacity)
      let made = CPUMemory.required(layout, zeroed: true)
      kept = made
      return made
    }
    return unsafe UnsafePointer(memory.place(CPUMemory.Region(offset: 0, stride: 0)))
  }

  var bytesPerToken: Double {
    let unit = Double(keyUnitBytes + valueUnitBytes) / Double(KVCacheLayout.unitLength)
    return method.isTiled ? unit + 4 + 4 + 1 : unit
  }
  var backendName: String { "cpu" }
  var instructionSet: String { instructions.rawValue }
  var appliesRotary: Bool { true }
  var kernels: intfa_cpu_kernels { unsafe instructions.kernels }

  func makeSequence() -> any KVCacheSequence { CPUCacheSequence(self) }

  // MARK: Units

  func keyUnit(_ head: Int, _ unit: Int32) -> UnsafeMutableRawPointer {
    unsafe UnsafeMutableRawPointer(
      units.place(keys, head, as: UInt8.self) + Int(unit) * keyUnitBytes
    )
  }

  func valueUnit(_ head: Int, _ unit: Int32) -> UnsafeMutableRawPointer {
    unsafe UnsafeMutableRawPointer(
      units.place(values, head, as: UInt8.self) + Int(unit) * valueUnitBytes
    )
  }

  func copyUnit(from source: Int32, to target: Int32) {
    let length = KVCacheLayout.unitLength
    let (from, to) = (Int(source) * length, Int(target) * length)
    for head in 0..<layout.keyValueHeadCount {
      unsafe keyUnit(head, target).copyMemory(from: keyUnit(head, source), byteCount: keyUnitBytes)
      unsafe valueUnit(head, target)
        .copyMemory(from: valueUnit(head, source), byteCount: valueUnitBytes)
      guard method.isTiled else { continue }
      for region in [keyScales, folds, realWeights] {
        let base = unsafe units.place(region, head)
        unsafe (base + to).update(from: base + from, count: length)
      }
      let base = unsafe units.place(weights, head, as: Int8.self)
      unsafe (base + to).update(from: base + from, count: length)
    }
  }
}

extension CPUCacheStore {
  func attend(_ call: KVCacheCall) throws(AttentionError) {
    guard call.query.shape.allSatisfy({ $0 > 0 }) else { return }
    let largest = try largestQuery(call)
    try InputCheck.requireLogits(
      largestQuery: largest,
      largestKey: call.parts.reduce(0) {
        max($0, ($1.sequence as? CPUCacheSequence)?.largestKey ?? 0)
      },
      headDimension: layout.headDimension,
      softmaxScale: call.softmaxScale
    )
    try CPUCacheCall(store: self, call: call).run()
  }

  private func largestQuery(_ call: KVCacheCall) throws(AttentionError) -> Float {
    let format = layout.recipe.query
    guard let rotary = call.rotary else {
      return unsafe try CPUSurvey.largest(of: call.query, .query, format, kernels)
    }
    var largest: Float = 0
    for part in call.parts {
      let found = unsafe try CPUSurvey.largest(
        of: call.query,
        part.queries,
        .query,
        format,
        kernels,
        rotary,
        position: part.firstPosition
      )
      largest = max(largest, found)
    }
    return largest
  }
}
