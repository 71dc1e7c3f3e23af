internal import CAttentionKernels

/// One call on caches: blocks of query rows, each against the tokens of its sequence.
///
/// The query heads of a key/value head stand side by side, token by token, so that every unit is read
/// once per block. Where rows are few the spans of a block are items of their own, whose results are
/// merged in order afterwards. Nothing of this changes a bit.
@safe
final class CPUCacheCall: @unchecked Sendable {
  // Sendable: constants, and memory of which each item writes its own part.
  let store: CPUCacheStore
  let call: KVCacheCall
  let kernels: intfa_cpu_kernels
  let layout: KVCacheLayout
  let recipe: QuantizationRecipe
  let groupSize: Int
  let blocks: [CPUCacheBlock]
  /// Which keys the mask of the call hides from whole blocks; nil without a mask.
  let surveys: CPUMaskSurveys?
  let blockTable: CPUCacheBlockTable?
  let workspace: CPUCacheWorkspace
  let threads: Int
  private let items: [(block: Int, span: Int?)]

  init(store: CPUCacheStore, call: KVCacheCall) throws(AttentionError) {
    self.store = store
    self.call = call
    unsafe kernels = store.kernels
    layout = store.layout
    recipe = store.layout.recipe
    groupSize = call.queryHeadCount / store.layout.keyValueHeadCount
    var blocks = CPUCacheBlock.blocks(of: call, in: store)
    surveys = call.mask.map { CPUMaskSurveys($0, &blocks) }
    blockTable = call.options.blocks.map { CPUCacheBlockTable($0, blocks) }
    self.blocks = blocks
    threads = Self.usefulThreads(blocks, store)

    var items: [(block: Int, span: Int?)] = []
    var partialCount = 0
    var largest = 1
    // Longest first.
    let order = blocks.indices.sorted { blocks[$0].work > blocks[$1].work }
    for index in order {
      let block = blocks[index]
      largest = max(largest, block.rows)
      if let spans = block.spans {
        for span in spans { items.append((index, span)) }
        partialCount = max(partialCount, block.firstPartial + spans.count)
      } else {
        items.append((index, nil))
      }
    }
    self.items = items
    workspace = try CPUCacheWorkspace(
      store.layout,
      rows: largest,
      partialRows: partialCount == 0 ? 0 : CPUCacheBlock.mostSplitRows,
      partialCount: partialCount,
      threads: threads
    )
  }

  /// Threads worth using: each has 20 microseconds of operations or of reading.
  private static func usefulThreads(_ blocks: [CPUCacheBlock], _ store: CPUCacheStore) -> Int {
    let work = blocks.reduce(0.0) { $0 + $1.work }
    return max(Int(min(work / 2e7, Double(store.threadCount))), 1)
  }

  func run() throws(AttentionError) {
    let team = ThreadPool.shared.beginTeam(threads: threads)
    defer { ThreadPool.shared.endTeam(team) }
    try surveyMask(team)
    ThreadPool.shared.run(itemCount: items.count, in: team) { item, seat in
      let (index, span) = items[item]
      let block = blocks[index]
      prepareQueries(block, seat: seat)
      if let span {
        attend(block, span: span, into: partial(block, span), seat: seat)
      } else {
        attend(block, seat: seat)
        addSinks(block, to: workspace.sums(seat: seat, 0), seat: seat)
        finish(block, workspace.sums(seat: seat, 0), seat: seat)
      }
    }
    let split = blocks.filter { $0.spans != nil }
    ThreadPool.shared.run(itemCount: split.count, in: team) { item, seat in
      let block = split[item]
      guard let spans = block.spans else { return }
      let sums = partial(block, spans.lowerBound)
      for span in spans.dropFirst() { merge(block, into: sums, from: partial(block, span)) }
      if call.logSumExp != nil || call.sinks != nil { findRowShifts(block, seat: seat) }
      addSinks(block, to: sums, seat: seat)
      finish(block, sums, seat: seat)
    }
  }

  private func partial(_ block: CPUCacheBlock, _ span: Int) -> CPUCacheWorkspace.Sums {
    workspace.sums(partial: block.firstPartial + span - (block.spans?.lowerBound ?? 0))
  }

  static let log2e: Float = 1.442695

  /// Size of the diagonal blocks of the rotation, which kernels do without normalisation.
  private var logitUnit: Float {
    let block =
      recipe.rotatesQueryAndKey
      ? HadamardRotation(dimension: layout.headDimension).blockLength : 1
    return call.softmaxScale * Self.log2e * store.method.logitSteps / Float(block)
  }

  // MARK: Queries

  /// Runs `body` for rows that lie evenly apart: the heads of a token, or the tokens of one head.
  func forEachRun(
    _ block: CPUCacheBlock,
    _ body: (_ row: Int, _ count: Int, _ head: Int, _ token: Int, _ axis: Int) -> Void
  ) {
    let tokens = block.tokens
    if block.heads.count == 1 {
      body(0, tokens.count, block.heads.lowerBound, block.firstQuery + tokens.lowerBound, 2)
    } else {
      for token in tokens {
        let row = (token - tokens.lowerBound) * block.heads.count
        body(row, block.heads.count, block.heads.lowerBound, block.firstQuery + token, 1)
      }
    }
  }

  private func queryRows(head: Int, token: Int, axis: Int) -> intfa_rows {
    var rows = unsafe CPUSurvey.rows(call.query, head: head, from: token)
    unsafe rows.stride = Int64(call.query.strides[axis])
    return unsafe rows
  }

  private func prepareQueries(_ block: CPUCacheBlock, seat: Int) {
    let dimension = layout.headDimension
    let isTiled = store.method.isTiled
    if block.isExact || !isTiled || call.logSumExp != nil || call.options.softcap != nil
      || call.sinks != nil
    {
      findRowShifts(block, seat: seat)
    } else if call.rotary != nil {
      loadQueries(block, seat: seat)
    }
    writeKeyMask(block, seat: seat)
    guard !block.isExact else { return }
    let unit = logitUnit
    guard isTiled else {
      let scales = unsafe workspace.place(workspace.queryScales, seat)
      unsafe scales.update(repeating: unit, count: block.rows)
      return
    }
    let codes = unsafe workspace.place(workspace.queryCodes, seat, as: Int8.self)
    let scales = unsafe workspace.place(workspace.queryScales, seat)
    forEachRun(block) { row, count, head, token, axis in
      var arguments = unsafe intfa_quantize()
      unsafe arguments.rows =
        call.rotary == nil
        ? queryRows(head: head, token: token, axis: axis) : turnedRows(row, seat: seat)
      unsafe arguments.end = Int64(count)
      unsafe arguments.dimension = Int32(dimension)
      unsafe arguments.rotates = recipe.rotatesQueryAndKey
      unsafe arguments.codes = codes + row * dimension
      unsafe arguments.scales = scales + row
      unsafe kernels.quantize(&arguments)
    }
    for row in 0..<block.rows { unsafe scales[row] *= unit }
  }

  /// What `loadQueries` has left.
  private func turnedRows(_ row: Int, seat: Int) -> intfa_rows {
    let dimension = layout.headDimension
    return unsafe intfa_rows(
      base: workspace.place(workspace.queryRows, seat) + row * dimension,
      stride: Int64(dimension),
      format: INTFA_FLOAT32
    )
  }

  /// Rows in float32, and q · kbar of each: what centring the keys took out of the logits.
  private func findRowShifts(_ block: CPUCacheBlock, seat: Int) {
    let dimension = layout.headDimension
    let queries = unsafe workspace.place(workspace.queryRows, seat)
    loadQueries(block, seat: seat)
    let shifts = unsafe workspace.place(workspace.rowShifts, seat)
    let scaled = unsafe workspace.place(workspace.scaledShifts, seat)
    let mean = unsafe block.sequence.first.keyMean(block.head)
    let isShifted = recipe.centersKey && !block.isExact
    for row in 0..<block.rows {
      let product =
        isShifted ? unsafe intfa_dot(queries + row * dimension, mean, Int32(dimension)) : 0
      unsafe shifts[row] = call.softmaxScale * product
      unsafe scaled[row] = shifts[row] * Self.log2e * store.method.logitSteps
    }
  }

  /// Rows in float32, turned by their positions where the call says so.
  private func loadQueries(_ block: CPUCacheBlock, seat: Int) {
    let dimension = layout.headDimension
    let queries = unsafe workspace.place(workspace.queryRows, seat)
    forEachRun(block) { row, count, head, token, axis in
      var rows = unsafe queryRows(head: head, token: token, axis: axis)
      let target = unsafe queries + row * dimension
      guard let embedding = call.rotary else {
        unsafe intfa_load_rows(
          &rows,
          0,
          Int64(count),
          Int32(dimension),
          1,
          INTFA_FLOAT32,
          target
        )
        return
      }
      let position = block.rotaryPosition + token - block.firstQuery
      let rotary = CPURotary(embedding: embedding, position: position, step: axis == 2 ? 1 : 0)
      unsafe rotary.load(rows, count: count, dimension: dimension, into: target, kernels)
    }
  }

  // MARK: Spans

  private func attend(_ block: CPUCacheBlock, seat: Int) {
    let sums = workspace.sums(seat: seat, 0)
    guard !block.isExact else {
      attendExactly(block, into: sums, seat: seat)
      return
    }
    sums.clear(rows: block.rows, start: startReference)
    var isFirst = true
    for span in block.spanIndices(recipe) {
      let target = isFirst ? sums : workspace.sums(seat: seat, 1)
      attend(block, span: span, into: target, seat: seat)
      if !isFirst { merge(block, into: sums, from: target) }
      isFirst = false
    }
  }

  private var startReference: Float { store.method.isTiled ? -.infinity : -1e30 }

  private func attend(
    _ block: CPUCacheBlock,
    span: Int,
    into sums: CPUCacheWorkspace.Sums,
    seat: Int
  ) {
    sums.clear(rows: block.rows, start: startReference)
    guard let range = recipe.span(span, keyValueLength: block.seen.upperBound) else { return }
    let wanted = block.seen.clamped(to: range)
    guard !wanted.isEmpty else { return }
    let start = recipe.tileStart(of: wanted.lowerBound, tileLength: recipe.tileLength)
    let shown = shownRanges(of: start..<wanted.upperBound, block)
    if store.method.isTiled {
      for keys in shown { attendTiles(block, keys, into: sums, seat: seat) }
    } else {
      attendFloats(block, shown, into: sums, seat: seat)
    }
  }

  private func attendExactly(_ block: CPUCacheBlock, into sums: CPUCacheWorkspace.Sums, seat: Int) {
    var arguments = unsafe intfa_attend_exact()
    unsafe arguments.rows = Int32(block.rows)
    unsafe arguments.head_dimension = Int32(layout.headDimension)
    unsafe arguments.value_dimension = Int32(layout.valueDimension)
    unsafe arguments.keys = Int64(min(block.count, CPUFirstTile.length))
    unsafe arguments.visible = block.visible
    unsafe arguments.mask = keyMask(from: 0, seat: seat)
    unsafe arguments.query = UnsafePointer(workspace.place(workspace.queryRows, seat))
    unsafe arguments.key = UnsafePointer(block.sequence.first.keyRows(block.head))
    unsafe arguments.value = UnsafePointer(block.sequence.first.valueRows(block.head))
    unsafe arguments.scale = call.softmaxScale * Self.log2e
    unsafe arguments.softcap = (call.options.softcap ?? 0) * Self.log2e
    unsafe arguments.out = sums.out
    unsafe arguments.out_stride = Int64(workspace.outStride)
    unsafe arguments.total = sums.total
    unsafe arguments.reference = sums.reference
    unsafe intfa_attend_exactly(&arguments)
  }

  func merge(
    _ block: CPUCacheBlock,
    into sums: CPUCacheWorkspace.Sums,
    from other: CPUCacheWorkspace.Sums
  ) {
    var arguments = unsafe intfa_merge()
    unsafe arguments.rows = Int32(block.rows)
    unsafe arguments.value_dimension = Int32(layout.valueDimension)
    unsafe arguments.steps = block.isExact ? 1 : store.method.logitSteps
    unsafe arguments.out_stride = Int64(workspace.outStride)
    unsafe arguments.into_out = sums.out
    unsafe arguments.into_total = sums.total
    unsafe arguments.into_reference = sums.reference
    unsafe arguments.from_out = UnsafePointer(other.out)
    unsafe arguments.from_total = UnsafePointer(other.total)
    unsafe arguments.from_reference = UnsafePointer(other.reference)
    unsafe kernels.merge(&arguments)
  }

  // MARK: Output

  private func finish(_ block: CPUCacheBlock, _ sums: CPUCacheWorkspace.Sums, seat: Int) {
    let isTiled = store.method.isTiled && !block.isExact
    let rotates = recipe.rotatesValue && isTiled
    let blockLength = rotates ? HadamardRotation(dimension: layout.valueDimension).blockLength : 1
    let factor = isTiled ? block.sequence.first.valueUnit(block.head) / Float(blockLength) : 1
    forEachRun(block) { row, count, head, token, axis in
      let target = unsafe CPUSurvey.rows(call.output, head: head, from: token)
      var arguments = unsafe intfa_finish()
      unsafe arguments.rows = Int32(count)
      unsafe arguments.value_dimension = Int32(layout.valueDimension)
      unsafe arguments.rotates = rotates
      unsafe arguments.factor = factor
      unsafe arguments.steps = isTiled ? 64 : 1
      unsafe arguments.total_unit = isTiled ? 255 : 1
      unsafe arguments.out = sums.out + row * workspace.outStride
      unsafe arguments.out_stride = Int64(workspace.outStride)
      unsafe arguments.total = UnsafePointer(sums.total + row)
      unsafe arguments.reference = UnsafePointer(sums.reference + row)
      unsafe arguments.target = UnsafeMutableRawPointer(mutating: target.base)
      unsafe arguments.target_stride = Int64(call.output.strides[axis])
      unsafe arguments.target_format = target.format
      if let logSumExp = call.logSumExp {
        let strides = logSumExp.strides
        unsafe arguments.log_sum_exp =
          logSumExp.base.assumingMemoryBound(to: Float.self) + head * strides[0]
          + token * strides[1]
        unsafe arguments.log_sum_exp_stride = Int64(strides[axis - 1])
        if isTiled, call.options.softcap == nil {
          unsafe arguments.row_shift = UnsafePointer(
            workspace.place(workspace.rowShifts, seat) + row
          )
        }
      }
      unsafe kernels.finish(&arguments)
    }
  }
}
